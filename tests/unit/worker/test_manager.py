"""Loading of models on request in the static engine. The clock advances only in calls and loads."""

from collections import deque

from PIL import Image

from imagegen_worker.backends import DeviceMemoryError, StartError
from imagegen_worker.core import events as ev
from imagegen_worker.core.model import Model
from imagegen_worker.core.model_cache import ModelCache
from imagegen_worker.engines.static import StaticEngine
from imagegen_worker.models.manager import ModelManager
from tests.unit.worker.bench import resolved

IMAGE = Image.new("RGB", (1, 1))
GIB = 2**30


class FakeModel:
    """A model of one GiB that records its loading and closing in the harness."""

    def __init__(self, harness, name):
        self.harness = harness
        self.name = name

    def size_bytes(self):
        if self.name in self.harness.broken:
            raise StartError("no such file")
        return self.harness.sizes.get(self.name, GIB)

    def load(self):
        self.harness.now += 5.0
        self.harness.calls.append(f"load {self.name}")
        if (error := self.harness.raising.pop(self.name, None)) is not None:
            raise error
        return Model(name=self.name, num_inference_steps=1, guidance_scale=None, width=8, height=8)

    def close(self):
        self.harness.calls.append(f"free {self.name}")


class Harness:
    """Clock, mailbox, backend and encoder of an engine with the models a, b and c; "a" is loaded."""

    def __init__(self, *commands, budget=GIB, patience=10.0, broken=(), raising=None, sizes=None):
        self.now = 100.0
        self.commands = deque(commands)
        self.broken = broken
        self.raising = raising or {}
        self.sizes = sizes or {}
        self.calls = []
        self.events = []
        self.seconds_per_image = None
        clock = lambda: self.now  # noqa: E731
        make = {name: (lambda name=name: FakeModel(self, name)) for name in "abc"}
        self.manager = ModelManager(make, ModelCache(budget, patience), clock=clock)
        self.manager.add("a", FakeModel(self, "a"))
        StaticEngine(self, self, max_batch_size=2, max_batch_wait=0.0, clock=clock, models=self.manager).run(self)

    def take(self, timeout):
        if self.commands and self.commands[0] is not None:
            return self.commands.popleft()
        if timeout is None:
            return self.commands.popleft() and None if self.commands else ev.Stop()
        if timeout > 0:
            self.now += timeout
        elif self.commands:
            self.commands.popleft()
        return None

    def post(self, event):
        self.events.append(event)

    def warnings(self, request):
        return ()

    def call_key(self, request):
        return request.batch_key

    def generate(self, rows, on_step):
        self.now += 1.0
        model = self.manager[rows[0].request.model].name
        self.calls.append(f"make {model} {','.join(row.request.prompt for row in rows)}")
        return [IMAGE] * len(rows)

    def submit(self, raw):
        """Discard a result."""

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def job(number, model):
    return ev.Job(number, resolved(model=model, prompt=str(number)), 100.0)


def test_an_idle_model_is_evicted_for_another_one():
    harness = Harness(job(1, "a"), job(2, "b"))
    assert harness.calls == ["make a 1", "free a", "load b", "make b 2"]
    assert [event.loaded for event in harness.of((ev.ModelLoading, ev.ModelLoaded))] == [("a",), ("b",), ("b",)]
    assert harness.of(ev.ModelLoaded)[0].model.name == "b"


def test_models_that_fit_together_stay_loaded():
    harness = Harness(job(1, "b"), job(2, "a"), job(3, "b"), budget=2 * GIB)
    assert harness.calls == ["load b", "make b 1,3", "make a 2"] or harness.calls == [
        "load b",
        "make a 2",
        "make b 1,3",
    ]


def test_a_busy_model_is_evicted_only_after_the_patience():
    harness = Harness(*(job(number, "b" if number == 2 else "a") for number in range(1, 40)), patience=10.0)
    eviction = harness.calls.index("free a")
    assert 9 <= eviction <= 11, "the patience is ten seconds, and a call takes one"
    assert harness.calls[eviction + 1 : eviction + 3] == ["load b", "make b 2"]
    assert harness.calls[eviction + 3 : eviction + 5] == ["free b", "load a"]
    assert sum(line.startswith("make") for line in harness.calls) == 20


def test_a_model_is_loaded_to_parse_its_requests():
    harness = Harness(ev.LoadModel("b"), ev.LoadModel("b"))
    assert harness.calls == ["free a", "load b"]


def test_a_model_larger_than_the_budget_is_loaded_alone():
    harness = Harness(job(1, "b"), budget=2 * GIB, sizes={"b": 5 * GIB})
    assert harness.calls == ["free a", "load b", "make b 1"]


def test_a_model_that_cannot_be_measured_evicts_no_other():
    harness = Harness(job(1, "b"), job(2, "a"), job(3, "b"), broken="b")
    assert harness.calls == ["make a 2"]
    (failed,) = harness.of(ev.ModelLoadFailed)
    assert failed == ev.ModelLoadFailed("b", "the model b cannot be loaded: no such file", ("a",))


def test_a_model_whose_loading_fails_is_freed():
    harness = Harness(job(1, "b"), job(2, "c"), raising={"b": ValueError("odd weights")})
    assert harness.calls == ["free a", "load b", "free b", "load c", "make c 2"]
    assert harness.of(ev.ModelLoadFailed)[0].message == "the model b cannot be loaded: ValueError: odd weights"


def test_a_model_that_runs_out_of_memory_is_loaded_again_alone():
    harness = Harness(job(1, "b"), budget=9 * GIB, raising={"b": DeviceMemoryError("full")})
    assert harness.calls == ["load b", "free b", "free a", "load b", "make b 1"]
    assert harness.of(ev.ModelLoaded)[0].loaded == ("b",)


def test_preloading_loads_the_models_that_fit_in_order():
    harness = Harness(budget=3 * GIB, sizes={"b": 3 * GIB})
    assert [model.name for model in harness.manager.preload()] == ["c"]
    assert harness.calls == ["load c"]
    harness.manager.close()
    assert harness.calls == ["load c", "free a", "free c"]

"""Several models in the continuous engine: concurrently if they fit into memory, else one after the other."""

import contextlib
from dataclasses import replace

from imagegen_worker.backends import StartError
from imagegen_worker.core import events as ev
from imagegen_worker.core.model import Model
from imagegen_worker.core.model_cache import ModelCache
from imagegen_worker.engines.continuous.engine import ContinuousEngine
from imagegen_worker.engines.continuous.managed import ManagedStepwise
from imagegen_worker.models.manager import ModelManager
from tests.unit.worker.continuous.models import ToyClock, ToyStage
from tests.unit.worker.continuous.test_engine import Encoder, Script, ToyBackend, job, of

GIB = 2**30


class FakeModel(ToyBackend):
    """A model of one GiB that takes five seconds to load."""

    def __init__(self, harness, name):
        super().__init__(harness.stage)
        self.harness = harness
        self.name = name
        self.open = True

    @contextlib.contextmanager
    def session(self):
        yield

    def size_bytes(self):
        if self.name == "broken":
            raise StartError("no such file")
        return GIB

    def load(self):
        self.harness.clock.now += 5.0
        self.harness.calls.append((f"load {self.name}", self.harness.clock.now))
        return Model(name=self.name, num_inference_steps=3, guidance_scale=None, width=8, height=8)

    def close(self):
        self.harness.calls.append((f"free {self.name}", self.harness.clock.now))

    def generate(self, rows, on_step):
        self.harness.calls.append((f"make {self.name} {len(rows)}", self.harness.clock.now))
        yielded = super().generate(rows, on_step)
        self.harness.ends.append((self.name, self.harness.clock.now))
        return yielded


class Harness:
    """An engine with several models, "a" loaded; it runs `commands`: (number of forwards before it, command).

    A forward takes a second.
    """

    def __init__(self, commands, *, budget=GIB, patience=10.0, max_batch_size=2):
        self.calls, self.ends = [], []
        self.clock = ToyClock(lambda key, rows: 1.0)
        self.stage = ToyStage(clock=self.clock)
        make = {name: (lambda name=name: FakeModel(self, name)) for name in ("a", "b", "c", "broken")}
        self.manager = ModelManager(make, ModelCache(budget, patience), clock=self.clock)
        first = FakeModel(self, "a")
        self.manager.add("a", first)
        self.mailbox, encoder = Script(self.stage, commands), Encoder()
        backend = ManagedStepwise(self.manager, first)
        ContinuousEngine(
            backend, encoder, max_batch_size=max_batch_size, clock=self.clock, models=self.manager
        ).run(self.mailbox)
        self.mailbox.close()
        self.results = encoder.results

    def lines(self, *beginnings):
        return [line for line, _ in self.calls if line.startswith(beginnings)]


def of_model(number, model, **options):
    one = job(number, **options)
    return replace(one, request=replace(one.request, model=model))


def test_images_of_two_loaded_models_run_at_the_same_time():
    harness = Harness([(0, of_model(1, "a", steps=9)), (1, of_model(2, "b", steps=2))], budget=2 * GIB)
    assert harness.lines("load", "free") == ["load b"]
    assert [name for name, _ in harness.ends] == ["b", "a"]


def test_without_memory_for_both_running_images_finish_first():
    harness = Harness([(0, of_model(1, "a", steps=9)), (1, of_model(2, "b", steps=2))])
    assert [line for line, _ in harness.calls] == ["make a 1", "free a", "load b", "make b 1"]
    assert sorted(harness.results) == [1, 2]
    assert isinstance(harness.mailbox.posted[-1], ev.Idle)


def test_requests_for_one_model_delay_another_at_most_for_the_patience():
    stream = [(when, of_model(1 + when, "a", steps=3)) for when in range(60)]
    harness = Harness([*stream, (0, of_model(100, "b", steps=3)), (0, of_model(101, "b", steps=3))], patience=10.0)
    loads = [(line, when) for line, when in harness.calls if line.startswith("load")]
    assert loads[0][0] == "load b"
    assert 10.0 <= loads[0][1] <= 10.0 + 3 + 5.0, "the patience, the end of running jobs, and the load"
    assert loads[1][0] == "load a"
    assert sorted(harness.results) == [*range(1, 61), 100, 101], "no request is lost"


def test_two_streams_of_requests_alternate():
    commands = [
        (when, of_model(2 * when + 1 + (model == "b"), model, steps=2)) for when in range(60) for model in "ab"
    ]
    harness = Harness(commands, patience=10.0)
    loads = harness.lines("load")
    assert loads == ["load b", "load a"] * (len(loads) // 2) + ["load b"] * (len(loads) % 2)
    assert 3 <= len(loads) <= 12, "models are swapped about every ten seconds, not for each request"
    assert len(harness.results) == 120


def test_a_model_that_cannot_be_loaded_ends_its_jobs_only():
    harness = Harness([(0, of_model(1, "a", steps=4)), (1, of_model(2, "broken")), (1, ev.LoadModel("broken"))])
    (failed, *_) = of(ev.ModelLoadFailed, harness.mailbox.posted)
    assert failed == ev.ModelLoadFailed("broken", "the model broken cannot be loaded: no such file", ("a",))
    assert sorted(harness.results) == [1]
    assert of(ev.Failed, harness.mailbox.posted) == [], (
        "the core fails these jobs, and those that it has not sent yet"
    )


def test_no_model_is_loaded_for_a_cancelled_request():
    harness = Harness([(0, of_model(1, "a", steps=9)), (1, of_model(2, "b")), (2, ev.Cancel(2))])
    assert sorted(harness.results) == [1]
    assert harness.lines("load", "free") == []

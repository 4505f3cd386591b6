"""Models that are loaded when jobs need them, under the static engine; time passes in calls and loads only."""

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


class Toy:
    """A model of one GiB; what happens to it is told to the desk."""

    def __init__(self, desk, name):
        self.desk = desk
        self.name = name

    def size_bytes(self):
        if self.name in self.desk.broken:
            raise StartError("no such file")
        return self.desk.sizes.get(self.name, GIB)

    def load(self):
        self.desk.now += 5.0
        self.desk.story.append(f"load {self.name}")
        if (error := self.desk.raising.pop(self.name, None)) is not None:
            raise error
        return Model(name=self.name, num_inference_steps=1, guidance_scale=None, width=8, height=8)

    def close(self):
        self.desk.story.append(f"free {self.name}")


class Desk:
    """Clock, mailbox, backend and encoder of an engine, with the models a, b and c. "a" is loaded."""

    def __init__(self, *commands, budget=GIB, patience=10.0, broken=(), raising=None, sizes=None):
        self.now = 100.0
        self.commands = deque(commands)
        self.broken = broken
        self.raising = raising or {}
        self.sizes = sizes or {}
        self.story = []
        self.events = []
        self.seconds_per_image = None
        clock = lambda: self.now  # noqa: E731
        make = {name: (lambda name=name: Toy(self, name)) for name in "abc"}
        self.manager = ModelManager(make, ModelCache(budget, patience), clock=clock)
        self.manager.add("a", Toy(self, "a"))
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

    def call_key(self, request):
        return request.batch_key

    def generate(self, rows, on_step):
        self.now += 1.0
        model = self.manager[rows[0].request.model].name
        self.story.append(f"make {model} {','.join(row.request.prompt for row in rows)}")
        return [IMAGE] * len(rows)

    def submit(self, raw):
        """The images are of no interest."""

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def job(number, model):
    return ev.Job(number, resolved(model=model, prompt=str(number)), 100.0)


def test_another_model_takes_the_place_of_one_that_has_no_work():
    desk = Desk(job(1, "a"), job(2, "b"))
    assert desk.story == ["make a 1", "free a", "load b", "make b 2"]
    assert [event.loaded for event in desk.of((ev.ModelLoading, ev.ModelLoaded))] == [("a",), ("b",), ("b",)]
    assert desk.of(ev.ModelLoaded)[0].model.name == "b"


def test_where_there_is_room_both_stay():
    desk = Desk(job(1, "b"), job(2, "a"), job(3, "b"), budget=2 * GIB)
    assert desk.story == ["load b", "make b 1,3", "make a 2"] or desk.story == ["load b", "make a 2", "make b 1,3"]


def test_a_model_that_has_work_is_not_taken_away_at_once():
    desk = Desk(*(job(number, "b" if number == 2 else "a") for number in range(1, 40)), patience=10.0)
    made_before = desk.story.index("free a")
    assert 9 <= made_before <= 11, "ten calls of one second each"
    assert desk.story[made_before + 1 : made_before + 3] == ["load b", "make b 2"]
    assert desk.story[made_before + 3 : made_before + 5] == ["free b", "load a"]
    assert sum(line.startswith("make") for line in desk.story) == 20


def test_a_model_is_loaded_for_a_request_that_can_not_be_read_before():
    desk = Desk(ev.LoadModel("b"), ev.LoadModel("b"))
    assert desk.story == ["free a", "load b"]


def test_one_that_is_bigger_than_the_budget_is_loaded_alone():
    desk = Desk(job(1, "b"), budget=2 * GIB, sizes={"b": 5 * GIB})
    assert desk.story == ["free a", "load b", "make b 1"]


def test_one_that_can_not_be_loaded_takes_nobodys_place():
    desk = Desk(job(1, "b"), job(2, "a"), job(3, "b"), broken="b")
    assert desk.story == ["make a 2"]
    (failed,) = desk.of(ev.ModelLoadFailed)
    assert failed == ev.ModelLoadFailed("b", "the model b cannot be loaded: no such file", ("a",))


def test_one_that_breaks_while_it_is_loaded_is_freed():
    desk = Desk(job(1, "b"), job(2, "c"), raising={"b": ValueError("odd weights")})
    assert desk.story == ["free a", "load b", "free b", "load c", "make c 2"]
    assert desk.of(ev.ModelLoadFailed)[0].message == "the model b cannot be loaded: ValueError: odd weights"


def test_one_that_does_not_fit_in_truth_is_tried_again_alone():
    desk = Desk(job(1, "b"), budget=9 * GIB, raising={"b": DeviceMemoryError("full")})
    assert desk.story == ["load b", "free b", "free a", "load b", "make b 1"]
    assert desk.of(ev.ModelLoaded)[0].loaded == ("b",)


def test_preloading_takes_what_fits_in_order():
    desk = Desk(budget=3 * GIB, sizes={"b": 3 * GIB})
    assert [model.name for model in desk.manager.preload()] == ["c"]
    assert desk.story == ["load c"]
    desk.manager.close()
    assert desk.story == ["load c", "free a", "free c"]

"""The simulated backend with a simulated clock: cost model, images and injected faults."""

import random

import pytest
from PIL import Image

from imagegen_worker.backends import DeviceMemoryError, Row, StoppedError
from imagegen_worker.backends.simulated import CRASH_STATUS, Faults, SimulatedBackend, draw, parse_faults
from imagegen_worker.core.cost_meter import CostMeter
from tests.unit.worker.bench import resolved


class Crashed(BaseException):
    pass


class Hung(BaseException):
    pass


class Harness:
    def __init__(self, *specs, batch_seconds=0.2, image_seconds=0.1, **costs):
        self.now = 100.0
        self.steps = []
        self.backend = SimulatedBackend(
            worker="sim",
            batch_seconds=batch_seconds,
            image_seconds=image_seconds,
            **costs,
            max_batch_size=4,
            faults=parse_faults(specs),
            clock=lambda: self.now,
            sleep=self.sleep,
            crash=self.crash,
        )

    def sleep(self, seconds):
        self.now += seconds

    def crash(self, status):
        assert status == CRASH_STATUS
        raise Crashed

    def make(self, *prompts, steps=4, on_step=None, **fields):
        rows = [
            Row(resolved(prompt=prompt, num_inference_steps=steps, **fields), index)
            for index, prompt in enumerate(prompts)
        ]
        return self.backend.generate(rows, on_step or (lambda step, of: self.steps.append((step, of, self.now))))


@pytest.fixture(autouse=True)
def hang(monkeypatch):
    """Raise `Hung` instead of blocking the test."""

    class Event:
        def wait(self):
            raise Hung

    monkeypatch.setattr("imagegen_worker.backends.simulated.threading.Event", Event)


def test_a_call_takes_the_time_of_the_cost_model_in_equal_steps():
    harness = Harness()
    assert len(harness.make("a", "b", "c")) == 3
    assert harness.now - 100.0 == pytest.approx(0.2 + 3 * 0.1)
    assert [(step, of) for step, of, _ in harness.steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [at - 100.0 for *_, at in harness.steps] == pytest.approx([0.125, 0.25, 0.375, 0.5])
    assert harness.backend.seconds_per_image == pytest.approx(0.1 + 0.2 / 4)


def test_steps_and_megapixels_cost_time():
    harness = Harness(batch_seconds=0.5, image_seconds=0.0, forward_seconds=0.1, megapixel_seconds=0.2)
    harness.make("a", "b", steps=10, width=1000, height=500)
    assert harness.now - 100.0 == pytest.approx(0.5 + 10 * (0.1 + 0.2 * 0.5 * 2))
    default = 256 * 256 / 1e6
    assert harness.backend.seconds_per_image == pytest.approx((0.5 + 20 * (0.1 + 0.2 * default * 4)) / 4)


def test_an_image_to_image_request_costs_the_steps_that_it_executes():
    harness = Harness("slow:2", batch_seconds=0.0, image_seconds=0.0, forward_seconds=0.1)
    harness.make("a", steps=10, strength=0.5)
    assert harness.now - 100.0 == pytest.approx(2 * 5 * 0.1)


def test_a_static_engine_predicts_mixed_requests_within_15_percent():
    harness, chance = Harness(forward_seconds=0.02, megapixel_seconds=0.1), random.Random(1)
    meter = CostMeter()
    for number in range(60):
        images, side = chance.choice((1, 1, 2, 4)), chance.choice((256, 512, 1024))
        fields = {"steps": chance.choice((4, 20, 50)), "width": side, "height": side}
        request = resolved(
            num_inference_steps=fields["steps"], width=side, height=side, seeds=tuple(range(images))
        )
        meter.start(number, request)
        before = harness.now
        harness.make(*["a"] * images, **fields)
        meter.add_call({number: images}, harness.now - before)
        measured = meter.finish(number)
        if number == 20:
            assert measured.costs.error < 0.15
    assert measured.costs.error < 0.1


def test_the_warm_up_reports_device_model_and_speed():
    warm = Harness("slow:2").backend.warm_up()
    assert warm.device == "simulated"
    assert warm.models[0].name == "simulated"
    assert warm.seconds_per_image == pytest.approx(2 * (0.1 + 0.2 / 4))


def test_the_task_changes_the_image():
    harness = Harness()
    assert list(harness.backend.warm_up().models[0].tasks) == ["text-to-image", "image-to-image", "inpainting"]
    image = Image.new("RGB", (64, 64))
    images = [
        draw(Row(resolved(image=image if task else None, task=task or "text-to-image"), 1), "sim").tobytes()
        for task in (None, "image-to-image", "inpainting")
    ]
    assert len(set(images)) == 3


def test_a_cancelled_call_stops():
    def stop(step, steps):
        raise StoppedError

    harness = Harness()
    with pytest.raises(StoppedError):
        harness.make("a", on_step=stop)
    assert harness.now < 100.1


def test_the_fault_slow():
    harness = Harness("slow:3")
    harness.make("a")
    assert harness.now - 100.0 == pytest.approx(0.9)


def test_the_fault_oom():
    harness = Harness("oom:2")
    assert len(harness.make("a", "b")) == 2
    with pytest.raises(DeviceMemoryError, match="3 images do not fit, 2 do"):
        harness.make("a", "b", "c")


def test_the_fault_error_on():
    harness = Harness("error-on:evil")
    harness.make("good")
    with pytest.raises(RuntimeError, match="evil"):
        harness.make("good", "an evil one")
    with pytest.raises(RuntimeError):
        harness.make("evil", steps=1)
    harness.make("ev", "il")


@pytest.mark.parametrize(("kind", "end"), [("crash", Crashed), ("hang", Hung)])
def test_the_faults_crash_on_and_hang_on_occur_after_half_of_the_steps(kind, end):
    harness = Harness(f"{kind}-on:evil")
    harness.make("good")
    harness.steps.clear()
    with pytest.raises(end):
        harness.make("good", "evil")
    assert [step for step, *_ in harness.steps] == [1, 2]


@pytest.mark.parametrize(("kind", "end"), [("crash", Crashed), ("hang", Hung)])
@pytest.mark.parametrize("good", [0, 2])
def test_the_faults_crash_after_and_hang_after(kind, end, good):
    harness = Harness(f"{kind}-after:{good}")
    for _ in range(good):
        harness.make("a")
    with pytest.raises(end):
        harness.make("a")


def test_faults_are_parsed():
    specs = ["slow:1.5", "oom:3", "crash-after:4", "hang-after:5", "error-on:a:b", "crash-on:c", "hang-on:d"]
    assert parse_faults(specs) == Faults(
        slow=1.5, oom=3, crash_after=4, hang_after=5, error_on="a:b", crash_on="c", hang_on="d"
    )
    assert parse_faults([]) == Faults()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sloww:2", "slow:VALUE"),
        ("slow", "slow:VALUE"),
        ("slow:", "slow:VALUE"),
        ("slow:fast", "'fast' is not a number"),
        ("slow:nan", "at least 0"),
        ("slow:inf", "at least 0"),
        ("oom:2.5", "'2.5' is not a number"),
        ("oom:-1", "at least 0"),
    ],
)
def test_the_error_for_an_invalid_fault_lists_the_valid_ones(spec, words):
    with pytest.raises(ValueError, match=words):
        parse_faults([spec])


def test_an_image_depends_on_prompt_seed_and_size():
    request = resolved(prompt="a", width=96, height=72)
    image = draw(Row(request, 1), "w")
    assert image.size == (96, 72)
    assert image.tobytes() == draw(Row(request, 1), "w").tobytes()
    others = [draw(Row(request, 2), "w"), draw(Row(resolved(prompt="b", width=96, height=72), 1), "w")]
    assert all(other.tobytes() != image.tobytes() for other in others)


@pytest.mark.parametrize("prompt", ["", "\0\r\n\t", "\U0001f600" * 50, "x" * 10_000, "\ud800"])
@pytest.mark.parametrize("side", [8, 64])
def test_an_image_shows_any_prompt(prompt, side):
    assert draw(Row(resolved(prompt=prompt, width=side, height=side), 1), "w" * 128).size == (side, side)

"""The static engine with a scripted backend and a simulated clock."""

from collections import deque
from dataclasses import replace

import pytest
from PIL import Image

from imagegen_protocol.errors import InvalidRequestError
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.core.events import (
    CallDone,
    CallFailed,
    Cancel,
    CostsMeasured,
    Failed,
    Idle,
    Job,
    Started,
    Stepped,
    Stop,
)
from imagegen_worker.engines.static import StaticEngine
from tests.unit.worker.bench import resolved

IMAGE = Image.new("RGB", (1, 1))


class Harness:
    """Clock, mailbox, backend and encoder of one engine, which runs until no command is left and it is idle."""

    def __init__(
        self, *commands, size=4, wait=1.0, limit=100, faulty=(), on_step=None, steps=2, reports_steps=True
    ):
        self.now = 10.0
        self.commands = deque(commands)
        self.limit = limit
        self.faulty = faulty
        self.on_step = on_step
        self.steps = steps
        self.reports_steps = reports_steps
        self.calls = []
        self.events = []
        self.results = {}
        self.seconds_per_image = 0.5
        self.engine = StaticEngine(self, self, max_batch_size=size, max_batch_wait=wait, clock=lambda: self.now)
        self.engine.run(self)

    # the mailbox
    def take(self, timeout):
        if self.commands:
            return self.commands.popleft()
        if timeout is None:
            return Stop()
        self.now += max(timeout, 0.0)
        return None

    def post(self, event):
        self.events.append(event)

    # the backend
    def warnings(self, request):
        return ("backend",) if request.prompt == "long" else ()

    def call_key(self, request):
        return request.batch_key

    def generate(self, rows, on_step):
        self.calls.append([(row.request.prompt, row.seed) for row in rows])
        if len(rows) > self.limit:
            raise DeviceMemoryError
        for step in range(1, self.steps + 1):
            self.now += 1.0
            if self.on_step is not None:
                self.on_step(self, step)
            if any(row.request.prompt in self.faulty for row in rows):
                raise ValueError("bad prompt")
            if self.reports_steps:
                on_step(step, self.steps)
        return [IMAGE] * len(rows)

    # the encoder
    def submit(self, raw):
        self.results[raw.number] = raw

    # posted events
    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def job(number, prompt=None, *, images=1, arrived=10.0):
    first = 100 * number
    return Job(number, resolved(prompt=prompt or f"p{number}", seeds=tuple(range(first, first + images))), arrived)


def test_a_batch_posts_its_events_in_order():
    harness = Harness(job(1), job(2))
    assert harness.calls == [[("p1", 100), ("p2", 200)]]
    assert [type(event) for event in harness.events] == [
        *(Started, Stepped, Stepped, CallDone, CostsMeasured, CostsMeasured, Idle)
    ]
    assert harness.of(Started) == [Started((1, 2))]
    assert harness.of(Stepped) == [Stepped((1, 2), 1, 2), Stepped((1, 2), 2, 2)]
    (done,) = harness.of(CallDone)
    assert (done.requests, done.images, done.seconds, done.seconds_per_image) == (2, 2, 2.0, 0.5)
    result = harness.results[2]
    assert (result.batch_size, result.queue_seconds, result.generation_seconds) == (2, 1.0, 2.0)
    assert result.request.seeds == (200,)


def test_a_full_batch_starts_at_once_and_a_single_job_waits():
    assert Harness(*(job(number) for number in range(4)), wait=50.0).now < 20.0
    assert Harness(job(1), wait=50.0).now >= 60.0


def test_many_images_of_one_request_are_split_over_calls():
    harness = Harness(job(1, images=10), job(2), size=4)
    assert [len(call) for call in harness.calls] == [4, 4, 2, 1]
    assert harness.results[1].request.seeds == tuple(range(100, 110))
    assert len(harness.results[1].images) == 10
    assert harness.of(Started) == [Started((1,)), Started((2,))]


def test_out_of_memory_splits_the_batch_in_halves_and_loses_no_job():
    harness = Harness(*(job(number) for number in range(1, 8)), size=7, limit=2)
    assert sorted(harness.results) == list(range(1, 8))
    assert harness.of(Failed) == []
    assert [call.images for call in harness.of(CallFailed) if call.split] == [7, 3, 4]
    assert max(done.images for done in harness.of(CallDone)) == 2
    assert sum(done.images for done in harness.of(CallDone)) == 7


def test_an_image_that_does_not_fit_alone_fails_its_job_with_its_size():
    harness = Harness(job(1, images=3), limit=0)
    (failed,) = harness.of(Failed)
    assert (failed.number, failed.code) == (1, "out_of_memory")
    assert "64x64 pixels" in failed.message
    assert len(harness.calls) == 2, "its other images are not generated"
    assert [call.split for call in harness.of(CallFailed)] == [True, False]


def test_only_the_faulty_job_of_a_batch_fails():
    harness = Harness(job(1), job(2, "evil"), job(3), faulty=("evil",))
    (failed,) = harness.of(Failed)
    assert (failed.number, failed.code, failed.message) == (2, "generation_failed", "ValueError: bad prompt")
    assert sorted(harness.results) == [1, 3]
    assert harness.results[1].batch_size == 1


def test_a_faulty_job_of_many_images_fails_once():
    harness = Harness(job(1, "evil", images=9), faulty=("evil",))
    assert len(harness.of(Failed)) == 1
    assert len(harness.calls) == 1


def test_a_cancelled_waiting_job_is_not_generated():
    harness = Harness(job(1), job(2), Cancel(1), Cancel(9))
    assert harness.calls == [[("p2", 200)]]


def test_a_cancelled_job_gets_no_further_events_and_its_batch_continues():
    def cancel(harness, step):
        if step == 1:
            harness.commands.append(Cancel(1))

    harness = Harness(job(1), job(2), on_step=cancel)
    assert harness.of(Stepped) == [Stepped((2,), 1, 2), Stepped((2,), 2, 2)]
    assert list(harness.results) == [2]


def test_a_call_whose_jobs_are_all_cancelled_stops_at_the_next_step():
    def cancel(harness, step):
        if step == 1:
            harness.commands.extend([Cancel(1), Cancel(2)])

    harness = Harness(job(1), job(2), on_step=cancel, steps=50)
    assert harness.results == {}
    assert harness.of(Stepped) == []
    assert harness.of(CallFailed) == [CallFailed(2, 1.0, split=False, stopped=True)]
    assert isinstance(harness.events[-1], Idle)


def test_a_job_cancelled_during_its_first_call_gets_no_second_one():
    def cancel(harness, step):
        if len(harness.calls) == 1:
            harness.commands.append(Cancel(1))

    harness = Harness(job(1, images=8), size=4, on_step=cancel, reports_steps=False)
    assert len(harness.calls) == 1


def test_jobs_that_arrive_during_a_call_form_the_next_batch():
    def arrive(harness, step):
        if step == 1 and len(harness.calls) == 1:
            harness.commands.extend([job(2, arrived=harness.now), job(3, arrived=harness.now)])

    harness = Harness(job(1), on_step=arrive)
    assert harness.calls == [[("p1", 100)], [("p2", 200), ("p3", 300)]]


def test_stop_finishes_the_running_batch_and_starts_no_other():
    def stop(harness, step):
        if step == 1:
            harness.commands.extend([Stop(), job(2)])

    harness = Harness(job(1), on_step=stop)
    assert list(harness.results) == [1]
    assert len(harness.calls) == 1


def test_a_lost_device_ends_the_engine():
    def lose(harness, step):
        raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError):
        Harness(job(1), on_step=lose)


def test_an_invalid_request_error_of_the_backend_keeps_its_code():
    class Strict(Harness):
        def generate(self, rows, on_step):
            raise InvalidRequestError("loras: there is no 'ink' here")

    (failed,) = [event for event in Strict(Job(1, resolved(), 10.0)).events if isinstance(event, Failed)]
    assert (failed.code, failed.message) == ("invalid_request", "loras: there is no 'ink' here")


def test_the_out_of_memory_message_names_the_size_and_the_largest_that_fitted():
    jobs = [Job(number, resolved(width=side, height=side), 10.0) for number, side in enumerate((64, 512), 1)]

    class Small(Harness):
        def generate(self, rows, on_step):
            if rows[0].request.width > 64:
                raise DeviceMemoryError
            return super().generate(rows, on_step)

    (failed,) = [event for event in Small(*jobs).events if isinstance(event, Failed)]
    assert failed.code == "out_of_memory"
    assert failed.message.startswith("one image of 512x512 pixels does not fit")
    assert failed.message.endswith("64x64 pixels fitted")


def test_a_batch_is_one_call_for_each_call_key():
    class ByPrompt(Harness):
        def call_key(self, request):
            return None if request.prompt == "alone" else request.prompt

    jobs = [job(1, "a", images=2), job(2, "alone", images=2), job(3, "a"), job(4, "b")]
    harness = ByPrompt(*jobs, size=6)
    assert harness.calls == [
        [("a", 100), ("a", 101), ("a", 300)],
        [("alone", 200)],
        [("alone", 201)],
        [("b", 400)],
    ]
    assert sorted(harness.results) == [1, 2, 3, 4]


def test_a_result_has_the_warnings_of_its_input_images_and_of_the_backend():
    scaled = job(1, "long")
    scaled = replace(scaled, request=replace(scaled.request, warnings=("image",)))
    results = Harness(scaled, job(2)).results
    assert [results[number].request.warnings for number in (1, 2)] == [("image", "backend"), ()]


def test_a_static_call_is_measured_for_each_of_its_jobs():
    harness = Harness(job(1), job(2))
    first, second = harness.of(CostsMeasured)
    assert (first.model, first.seconds, second.seconds) == ("m", 1.0, 1.0)
    assert first.predicted is None
    assert first.costs.samples == 1


def test_a_job_that_failed_is_not_measured():
    harness = Harness(job(1, "bad"), job(2), faulty=("bad",))
    assert len(harness.of(CostsMeasured)) == 1
    assert not harness.engine._meter._running

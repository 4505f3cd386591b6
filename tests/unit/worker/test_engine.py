"""The static engine with a scripted backend and a clock of the test's own."""

from collections import deque

import pytest
from PIL import Image

from imagegen_protocol.errors import InvalidRequestError
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.core.events import CallDone, CallFailed, Cancel, Failed, Idle, Job, Started, Stepped, Stop
from imagegen_worker.engines.static import StaticEngine
from tests.unit.worker.bench import resolved

IMAGE = Image.new("RGB", (1, 1))


class Desk:
    """Clock, mailbox, backend and encoder of one engine. With no command left, time goes on or the engine ends."""

    def __init__(self, *commands, size=4, wait=1.0, limit=100, guilty=(), on_step=None, steps=2, tells=True):
        self.now = 10.0
        self.commands = deque(commands)
        self.limit = limit
        self.guilty = guilty
        self.on_step = on_step
        self.steps = steps
        self.tells = tells
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
            if any(row.request.prompt in self.guilty for row in rows):
                raise ValueError("bad prompt")
            if self.tells:
                on_step(step, self.steps)
        return [IMAGE] * len(rows)

    # the encoder
    def submit(self, raw):
        self.results[raw.number] = raw

    # what was posted
    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def job(number, prompt=None, *, images=1, arrived=10.0):
    first = 100 * number
    return Job(number, resolved(prompt=prompt or f"p{number}", seeds=tuple(range(first, first + images))), arrived)


def test_a_batch_and_what_is_told_of_it():
    desk = Desk(job(1), job(2))
    assert desk.calls == [[("p1", 100), ("p2", 200)]]
    assert [type(event) for event in desk.events] == [Started, Stepped, Stepped, CallDone, Idle]
    assert desk.of(Started) == [Started((1, 2))]
    assert desk.of(Stepped) == [Stepped((1, 2), 1, 2), Stepped((1, 2), 2, 2)]
    (done,) = desk.of(CallDone)
    assert (done.requests, done.images, done.seconds, done.seconds_per_image) == (2, 2, 2.0, 0.5)
    result = desk.results[2]
    assert (result.batch_size, result.queue_seconds, result.generation_seconds) == (2, 1.0, 2.0)
    assert result.request.seeds == (200,)


def test_a_full_batch_does_not_wait_and_a_lone_job_does():
    assert Desk(*(job(number) for number in range(4)), wait=50.0).now < 20.0
    assert Desk(job(1), wait=50.0).now >= 60.0


def test_many_images_of_one_request_are_split_over_calls():
    desk = Desk(job(1, images=10), job(2), size=4)
    assert [len(call) for call in desk.calls] == [4, 4, 2, 1]
    assert desk.results[1].request.seeds == tuple(range(100, 110))
    assert len(desk.results[1].images) == 10
    assert desk.of(Started) == [Started((1,)), Started((2,))]


def test_out_of_memory_halves_until_it_fits_and_loses_nothing():
    desk = Desk(*(job(number) for number in range(1, 8)), size=7, limit=2)
    assert sorted(desk.results) == list(range(1, 8))
    assert desk.of(Failed) == []
    assert [call.images for call in desk.of(CallFailed) if call.split] == [7, 3, 4]
    assert max(done.images for done in desk.of(CallDone)) == 2
    assert sum(done.images for done in desk.of(CallDone)) == 7


def test_what_does_not_fit_even_alone_is_told_with_its_size():
    desk = Desk(job(1, images=3), limit=0)
    (failed,) = desk.of(Failed)
    assert (failed.number, failed.code) == (1, "out_of_memory")
    assert "64x64 pixels" in failed.message
    assert len(desk.calls) == 2, "its other images are not tried"
    assert [call.split for call in desk.of(CallFailed)] == [True, False]


def test_one_guilty_request_of_a_batch_fails_alone():
    desk = Desk(job(1), job(2, "evil"), job(3), guilty=("evil",))
    (failed,) = desk.of(Failed)
    assert (failed.number, failed.code, failed.message) == (2, "generation_failed", "ValueError: bad prompt")
    assert sorted(desk.results) == [1, 3]
    assert desk.results[1].batch_size == 1


def test_a_guilty_request_of_many_images_fails_once():
    desk = Desk(job(1, "evil", images=9), guilty=("evil",))
    assert len(desk.of(Failed)) == 1
    assert len(desk.calls) == 1


def test_a_cancelled_job_that_waits_is_never_made():
    desk = Desk(job(1), job(2), Cancel(1), Cancel(9))
    assert desk.calls == [[("p2", 200)]]


def test_a_cancelled_job_is_left_out_from_the_next_step_on_and_company_goes_on():
    def cancel(desk, step):
        if step == 1:
            desk.commands.append(Cancel(1))

    desk = Desk(job(1), job(2), on_step=cancel)
    assert desk.of(Stepped) == [Stepped((2,), 1, 2), Stepped((2,), 2, 2)]
    assert list(desk.results) == [2]


def test_a_call_that_nobody_wants_stops_at_the_next_step_and_its_time_counts():
    def cancel(desk, step):
        if step == 1:
            desk.commands.extend([Cancel(1), Cancel(2)])

    desk = Desk(job(1), job(2), on_step=cancel, steps=50)
    assert desk.results == {}
    assert desk.of(Stepped) == []
    assert desk.of(CallFailed) == [CallFailed(2, 1.0, split=False, stopped=True)]
    assert isinstance(desk.events[-1], Idle)


def test_a_job_cancelled_between_two_calls_is_not_begun_again():
    def cancel(desk, step):
        if len(desk.calls) == 1:
            desk.commands.append(Cancel(1))

    desk = Desk(job(1, images=8), size=4, on_step=cancel, tells=False)
    assert len(desk.calls) == 1


def test_jobs_that_come_during_a_call_are_the_next_batch():
    def arrive(desk, step):
        if step == 1 and len(desk.calls) == 1:
            desk.commands.extend([job(2, arrived=desk.now), job(3, arrived=desk.now)])

    desk = Desk(job(1), on_step=arrive)
    assert desk.calls == [[("p1", 100)], [("p2", 200), ("p3", 300)]]


def test_stop_lets_the_running_batch_end_and_begins_no_other():
    def stop(desk, step):
        if step == 1:
            desk.commands.extend([Stop(), job(2)])

    desk = Desk(job(1), on_step=stop)
    assert list(desk.results) == [1]
    assert len(desk.calls) == 1


def test_a_lost_device_ends_the_engine():
    def lose(desk, step):
        raise DeviceLostError("gone")

    with pytest.raises(DeviceLostError):
        Desk(job(1), on_step=lose)


def test_what_the_backend_finds_wrong_with_a_request_is_told_as_such():
    class Strict(Desk):
        def generate(self, rows, on_step):
            raise InvalidRequestError("loras: there is no 'ink' here")

    (failed,) = [event for event in Strict(Job(1, resolved(), 10.0)).events if isinstance(event, Failed)]
    assert (failed.code, failed.message) == ("invalid_request", "loras: there is no 'ink' here")


def test_what_does_not_fit_alone_says_its_size_and_what_would():
    jobs = [Job(number, resolved(width=side, height=side), 10.0) for number, side in enumerate((64, 512), 1)]

    class Small(Desk):
        def generate(self, rows, on_step):
            if rows[0].request.width > 64:
                raise DeviceMemoryError
            return super().generate(rows, on_step)

    (failed,) = [event for event in Small(*jobs).events if isinstance(event, Failed)]
    assert failed.code == "out_of_memory"
    assert failed.message.startswith("one image of 512x512 pixels does not fit")
    assert failed.message.endswith("64x64 pixels fitted")


def test_a_batch_is_one_call_for_each_call_key():
    class ByPrompt(Desk):
        def call_key(self, request):
            return None if request.prompt == "alone" else request.prompt

    jobs = [job(1, "a", images=2), job(2, "alone", images=2), job(3, "a"), job(4, "b")]
    desk = ByPrompt(*jobs, size=6)
    assert desk.calls == [
        [("a", 100), ("a", 101), ("a", 300)],
        [("alone", 200)],
        [("alone", 201)],
        [("b", 400)],
    ]
    assert sorted(desk.results) == [1, 2, 3, 4]

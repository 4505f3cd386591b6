"""Small pictures on the way: asked for, drawn on the pool, sent behind a PROGRESS, and never in anybody's way."""

import io
import select
import threading

import pytest
from PIL import Image

from imagegen_protocol.limits import MAX_PREVIEW_BYTES
from imagegen_protocol.messages import Progress, WorkerHeartbeat
from imagegen_worker.backends.simulated import SimulatedBackend
from imagegen_worker.core import events as ev
from imagegen_worker.engines.static import StaticEngine
from imagegen_worker.images.encoding import EncodePool
from imagegen_worker.mailbox import Mailbox
from tests.unit.worker.bench import Bench, resolved

PICTURE = Image.new("RGB", (200, 100), "red")


def progress(bench):
    """What was told of progress: step, and frames behind it."""
    return [(message.step, frames) for _, message, frames in bench.sent if isinstance(message, Progress)]


def previewed(bench, number, image=b"png"):
    bench.event(ev.Previewed(bench.number(number), image))


def test_a_preview_comes_behind_the_last_step_and_implies_progress():
    bench = Bench()
    bench.work(1, preview=True)
    assert bench.jobs[1].preview
    bench.start(1)
    bench.step(1, 2)
    previewed(bench, 1)
    assert progress(bench) == [(0, ()), (2, ()), (2, (b"png",))]


@pytest.mark.parametrize("fields", [{}, {"progress": True}])
def test_nobody_gets_what_was_not_asked_for(fields):
    bench = Bench()
    bench.work(1, **fields)
    assert not bench.jobs[1].preview
    bench.start(1)
    previewed(bench, 1)
    assert all(frames == () for _, frames in progress(bench))


def test_a_preview_too_long_or_too_late_is_dropped():
    bench = Bench()
    bench.work(1, preview=True)
    bench.start(1)
    number = bench.number(1)
    previewed(bench, 1, bytes(MAX_PREVIEW_BYTES + 1))
    bench.finish(1)
    bench.event(ev.Previewed(number, b"late"))
    assert progress(bench) == [(0, ())]


def test_a_second_work_changes_whether_previews_are_sent():
    bench = Bench()
    bench.work(1, preview=True)
    bench.start(1)
    bench.work(1, progress=True)
    bench.sent.clear()
    previewed(bench, 1)
    assert progress(bench) == []


def previews(bench, broker=0):
    """How many previews were sent to a broker for each request, by its number."""
    found = {}
    for to, message, frames in bench.sent:
        if to == broker and isinstance(message, Progress) and frames:
            number = int.from_bytes(message.request_id)
            found[number] = found.get(number, 0) + 1
    return found


@pytest.mark.parametrize("interval", [0.5, 1.0, 60.0])
def test_the_bytes_of_previews_are_bounded_in_time_and_shared_by_the_requests_of_a_broker(interval):
    bench = Bench(brokers=2)
    bench.beat(interval_seconds=interval)
    for number in (1, 2):
        bench.work(number, preview=True)
    bench.work(3, preview=True, broker=1)
    bench.work(4)
    bench.start(1, 2, 3, 4)
    for _ in range(80):
        bench.advance(min(interval, 1.0) / 8)
        bench.beat(interval_seconds=interval)
        bench.beat(1)
        for number in (1, 2, 3):
            previewed(bench, number, bytes(MAX_PREVIEW_BYTES // 4))
    assert previews(bench) == {1: 20, 2: 20}, "10 intervals, 4 previews in each, 2 requests"
    assert previews(bench, 1) == {3: 40 if interval >= 1 else 20}


def test_progress_is_omitted_while_the_broker_does_not_confirm_heartbeats():
    bench = Bench()
    bench.work(1, preview=True)
    bench.start(1)

    def sends_progress():
        bench.sent.clear()
        bench.advance(0.001)
        bench.step(1, 1)
        previewed(bench, 1)
        assert len(progress(bench)) in (0, 2)
        return bool(progress(bench))

    bench.advance(1.0)
    first = bench.messages(WorkerHeartbeat)[0]
    bench.beat(number=0)
    bench.advance(0.4)
    assert sends_progress()
    bench.advance(0.1)
    assert not sends_progress()
    bench.advance(0.5)
    bench.beat(number=first.number - 1)
    assert not sends_progress(), "an earlier one was confirmed"
    bench.beat(number=first.number)
    assert sends_progress()
    bench.advance(1.0)
    assert bench.messages(WorkerHeartbeat)[-1].number > first.number
    bench.advance(1.0)
    bench.beat(number=first.number)
    bench.advance(0.6)
    assert not sends_progress()
    bench.beat(session=0)
    bench.beat(session=2, number=0)
    assert sends_progress(), "the connection is new"


def test_progress_is_sent_to_a_broker_that_confirms_nothing():
    bench = Bench()
    bench.work(1, progress=True)
    bench.start(1)
    bench.beats(5.0)
    bench.step(1, 1)
    assert progress(bench)[-1] == (1, ())


# ---- the pool ----------------------------------------------------------------------------------------------


@pytest.fixture
def mailbox():
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


@pytest.fixture
def pool(mailbox):
    pool = EncodePool(mailbox)
    yield pool
    pool.close()


def wait(mailbox):
    readable, _, _ = select.select([mailbox.fileno()], [], [], 60)
    assert readable, "nothing was posted"
    return mailbox.events()


def test_a_sketch_becomes_a_png_of_64_pixels_at_most(mailbox, pool):
    pool.sketch(7, PICTURE.copy)
    (event,) = wait(mailbox)
    assert event.number == 7
    with Image.open(io.BytesIO(event.image)) as image:
        assert (image.format, image.size) == ("PNG", (64, 32))
    assert PICTURE.size == (200, 100)


def test_while_one_is_drawn_no_other_of_the_same_job_waits(mailbox, pool):
    go, drawn = threading.Event(), []

    def slow():
        drawn.append("slow")
        assert go.wait(60)
        return PICTURE.copy()

    pool.sketch(1, slow)
    for _ in range(100):
        pool.sketch(1, lambda: drawn.append("another") or PICTURE.copy())
    pool.sketch(2, PICTURE.copy)
    assert [event.number for event in wait(mailbox)] == [2]
    go.set()
    assert [event.number for event in wait(mailbox)] == [1]
    assert drawn == ["slow"]


def test_a_sketch_that_fails_is_not_missed(mailbox, caplog):
    pool = EncodePool(mailbox, threads=1)

    def broken():
        raise ValueError("no")

    pool.sketch(1, broken)
    pool.sketch(2, PICTURE.copy)
    assert [event.number for event in wait(mailbox)] == [2]
    pool.sketch(1, PICTURE.copy)
    assert [event.number for event in wait(mailbox)] == [1]
    assert "preview failed" in caplog.text
    pool.close()


# ---- the static engine -------------------------------------------------------------------------------------


class Desk:
    """Mailbox and encoder of an engine that ends when nothing is left to do."""

    def __init__(self, *jobs):
        self.commands = list(jobs)
        self.sketched = []
        self.results = []

    def take(self, timeout):
        return self.commands.pop(0) if self.commands else ev.Stop() if timeout is None else None

    def post(self, event):
        pass

    def submit(self, raw):
        self.results.append(raw.number)

    def sketch(self, number, sketch):
        self.sketched.append((number, sketch().size))


def test_the_first_image_of_those_who_asked_is_sketched_at_each_step():
    request = resolved(seeds=(1, 2), num_inference_steps=3, width=128, height=64)
    desk = Desk(ev.Job(1, request, 0.0, preview=True), ev.Job(2, request, 0.0))
    backend = SimulatedBackend(
        worker="w",
        batch_seconds=0,
        image_seconds=0,
        max_batch_size=4,
        clock=lambda: 0.0,
        sleep=lambda seconds: None,
    )
    StaticEngine(backend, desk, max_batch_size=4, max_batch_wait=0.0, clock=lambda: 0.0).run(desk)
    assert desk.results == [1, 2]
    assert desk.sketched == [(1, (128, 64))] * 3

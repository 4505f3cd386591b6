"""Previews: requested by WORK, encoded on the pool, sent with PROGRESS, and omitted on slow links."""

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

IMAGE = Image.new("RGB", (200, 100), "red")


def progress(bench):
    """Return step and frames of each PROGRESS that was sent."""
    return [(message.step, frames) for _, message, frames in bench.sent if isinstance(message, Progress)]


def previewed(bench, number, image=b"png"):
    bench.event(ev.Previewed(bench.number(number), image))


def test_a_preview_is_sent_with_the_last_step_and_implies_progress():
    bench = Bench()
    bench.work(1, preview=True)
    assert bench.jobs[1].preview
    bench.start(1)
    bench.step(1, 2)
    previewed(bench, 1)
    assert progress(bench) == [(0, ()), (2, ()), (2, (b"png",))]


@pytest.mark.parametrize("fields", [{}, {"progress": True}])
def test_previews_that_were_not_requested_are_not_sent(fields):
    bench = Bench()
    bench.work(1, **fields)
    assert not bench.jobs[1].preview
    bench.start(1)
    previewed(bench, 1)
    assert all(frames == () for _, frames in progress(bench))


def test_a_preview_that_is_too_large_or_too_late_is_dropped():
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
    """Return the number of previews that were sent to a broker, by the number of the request."""
    found = {}
    for to, message, frames in bench.sent:
        if to == broker and isinstance(message, Progress) and frames:
            number = int.from_bytes(message.request_id)
            found[number] = found.get(number, 0) + 1
    return found


@pytest.mark.parametrize("interval", [0.5, 1.0, 60.0])
def test_the_rate_of_preview_bytes_is_limited_and_shared_by_the_requests_of_a_broker(interval):
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
    assert not sends_progress(), "only an earlier heartbeat is confirmed"
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


def test_a_preview_is_encoded_as_a_png_of_at_most_64_pixels(mailbox, pool):
    pool.sketch(7, IMAGE.copy)
    (event,) = wait(mailbox)
    assert event.number == 7
    with Image.open(io.BytesIO(event.image)) as image:
        assert (image.format, image.size) == ("PNG", (64, 32))
    assert IMAGE.size == (200, 100)


def test_only_one_preview_of_a_job_is_queued_at_a_time(mailbox, pool):
    proceed, encoded = threading.Event(), []

    def slow():
        encoded.append("slow")
        assert proceed.wait(60)
        return IMAGE.copy()

    pool.sketch(1, slow)
    for _ in range(100):
        pool.sketch(1, lambda: encoded.append("another") or IMAGE.copy())
    pool.sketch(2, IMAGE.copy)
    assert [event.number for event in wait(mailbox)] == [2]
    proceed.set()
    assert [event.number for event in wait(mailbox)] == [1]
    assert encoded == ["slow"]


def test_a_preview_that_fails_is_logged_and_omitted(mailbox, caplog):
    pool = EncodePool(mailbox, threads=1)

    def broken():
        raise ValueError("no")

    pool.sketch(1, broken)
    pool.sketch(2, IMAGE.copy)
    assert [event.number for event in wait(mailbox)] == [2]
    pool.sketch(1, IMAGE.copy)
    assert [event.number for event in wait(mailbox)] == [1]
    assert "preview failed" in caplog.text
    pool.close()


# ---- the static engine -------------------------------------------------------------------------------------


class Harness:
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


def test_each_step_has_a_preview_of_the_first_image_of_jobs_with_previews():
    request = resolved(seeds=(1, 2), num_inference_steps=3, width=128, height=64)
    harness = Harness(ev.Job(1, request, 0.0, preview=True), ev.Job(2, request, 0.0))
    backend = SimulatedBackend(
        worker="w",
        batch_seconds=0,
        image_seconds=0,
        max_batch_size=4,
        clock=lambda: 0.0,
        sleep=lambda seconds: None,
    )
    StaticEngine(backend, harness, max_batch_size=4, max_batch_wait=0.0, clock=lambda: 0.0).run(harness)
    assert harness.results == [1, 2]
    assert harness.sketched == [(1, (128, 64))] * 3

"""Progress events with and without previews, and consumers that never read."""

import io

import pytest
from PIL import Image

from imagegen_client.job import MAX_UNREAD, MAX_UNREAD_STEPS, Job
from imagegen_client.progress import Progress, make_progress
from imagegen_protocol import ProtocolError, messages
from imagegen_protocol.images import read_size
from imagegen_protocol.limits import MAX_PREVIEW_BYTES
from tests.integration.client.peers import PNG
from tests.unit.client.core_harness import connected, rid

MESSAGE = messages.Progress(request_id=rid(1), step=2, steps=5, attempt=3)


def test_progress_has_the_fields_of_its_message():
    assert make_progress(MESSAGE, ()) == Progress(2, 5, 3, None, "running", None, None)
    queued = messages.Progress(request_id=rid(1), state="queued", place=4, seconds_to_start=1.5)
    assert make_progress(queued, ()) == Progress(0, 0, state="queued", place=4, seconds_to_start=1.5)
    progress = make_progress(MESSAGE, [memoryview(PNG)])
    assert progress.preview == PNG
    assert progress.preview_image.size == (4, 2)
    assert make_progress(MESSAGE, ()).preview_image is None
    assert "preview" not in repr(progress)


def encoded(kind, size=(64, 33)):
    out = io.BytesIO()
    Image.new("L", size).save(out, kind)
    return out.getvalue()


@pytest.mark.parametrize(
    "payload",
    [
        [b""],
        [PNG, PNG],
        [PNG + bytes(MAX_PREVIEW_BYTES + 1 - len(PNG))],
        [b"not an image"],
        [encoded("GIF")],
        [PNG[:20]],
        [encoded("PNG", (65, 1))],
        [encoded("JPEG", (1, 65))],
    ],
)
def test_an_invalid_preview_is_dropped(payload):
    assert make_progress(MESSAGE, payload).preview is None


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_preview_of_the_maximum_size_is_kept(kind):
    assert make_progress(MESSAGE, [encoded(kind)]).preview_image.size == (64, 33)


def test_a_small_preview_that_unfolds_to_megapixels_is_never_decoded(monkeypatch):
    bomb = encoded("PNG", (13_000, 1000))
    assert len(bomb) < MAX_PREVIEW_BYTES
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("the preview was decoded"))
    assert make_progress(MESSAGE, [bomb]).preview is None
    with pytest.raises(ProtocolError, match="expected a preview of at most 64x64 pixels, got one of 13000x1000"):
        _ = Progress(1, 2, preview=bomb).preview_image


def test_an_undecodable_preview_raises_only_when_it_is_decoded():
    broken = PNG[:33] + b"?" * 20
    with pytest.raises(OSError, match=r"cannot identify|broken|truncated"):
        _ = make_progress(MESSAGE, [broken]).preview_image
    with pytest.raises(OSError, match="cannot identify"):
        _ = Progress(1, 2, preview=encoded("GIF")).preview_image


def test_a_job_reports_that_it_waits_for_a_broker():
    job = Job(rid(1), 7, transport=None, owner=None, progress=True)
    for _ in range(1000):
        job.on_waiting("no broker answers")
    assert job.latest == Progress(0, 0, state="waiting", reason="no broker answers")
    assert job.progress_queue().qsize() == MAX_UNREAD
    silent = Job(rid(1), 7, transport=None, owner=None, progress=False)
    silent.on_waiting("no broker answers")
    assert silent.latest.state == "waiting"


def test_the_core_passes_previews_on():
    harness = connected()
    key = harness.submit(1, preview=True)
    (submit,) = harness.take(messages.Submit)
    assert submit.preview
    harness.receive(messages.Progress(request_id=key, step=1, steps=2), b"image")
    assert [(report.key, report.progress.step, report.payload) for report in harness.progress_reports] == [
        (key, 1, (b"image",))
    ]


def test_unread_progress_keeps_every_step_but_few_previews():
    job = Job(rid(1), 7, transport=None, owner=None, progress=True)
    for step in range(100):
        job.on_progress(messages.Progress(request_id=rid(1), step=step, steps=100), [PNG])
    unread = [job.progress_queue().get_nowait() for _ in range(100)]
    assert [progress.step for progress in unread] == list(range(100))
    assert sum(progress.preview is not None for progress in unread) == MAX_UNREAD
    job.on_progress(MESSAGE, [PNG])
    assert job.progress_queue().get_nowait().preview == PNG


def test_unread_progress_keeps_few_queue_positions_and_the_latest_is_known():
    job = Job(rid(1), 7, transport=None, owner=None, progress=True)
    assert job.latest is None
    for place in reversed(range(1000)):
        job.on_progress(messages.Progress(request_id=rid(1), state="queued", place=place), ())
        assert job.latest.place == place
    assert job.progress_queue().qsize() == MAX_UNREAD
    job.on_progress(MESSAGE, ())
    assert job.latest.step == 2
    assert job.progress_queue().qsize() == MAX_UNREAD + 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_the_size_of_a_cut_off_image_is_unknown_or_right(kind):
    data = encoded(kind)
    sizes = {read_size(memoryview(data)[:length]) for length in range(len(data))}
    assert sizes == {None, (64, 33)}


def test_a_worker_that_reports_without_end_fills_no_memory():
    job = Job(rid(1), 7, transport=None, owner=None, progress=True)
    for step in range(2 * MAX_UNREAD_STEPS):
        job.on_progress(messages.Progress(request_id=rid(1), step=step, steps=10), ())
    assert job.progress_queue().qsize() == MAX_UNREAD_STEPS
    assert job.latest.step == 2 * MAX_UNREAD_STEPS - 1

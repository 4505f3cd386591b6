"""Signs of progress with and without a picture, and readers who never read."""

import io

import pytest
from PIL import Image

from imagegen_client.job import MAX_BEHIND, Job
from imagegen_client.progress import Progress, make_progress
from imagegen_protocol import messages
from imagegen_protocol.limits import MAX_PREVIEW_BYTES
from tests.integration.client.peers import PNG
from tests.unit.client.desk import connected, rid

SIGN = messages.Progress(request_id=rid(1), step=2, steps=5, attempt=3)


def test_what_a_sign_tells():
    assert make_progress(SIGN, ()) == Progress(2, 5, 3, None, "running", None, None)
    waits = messages.Progress(request_id=rid(1), state="queued", place=4, seconds_to_start=1.5)
    assert make_progress(waits, ()) == Progress(0, 0, state="queued", place=4, seconds_to_start=1.5)
    sign = make_progress(SIGN, [memoryview(PNG)])
    assert sign.preview == PNG
    assert sign.preview_image.size == (4, 2)
    assert make_progress(SIGN, ()).preview_image is None
    assert "preview" not in repr(sign)


@pytest.mark.parametrize("payload", [[b""], [b"a", b"b"], [bytes(MAX_PREVIEW_BYTES + 1)]])
def test_what_is_no_picture_is_left_out(payload):
    assert make_progress(SIGN, payload).preview is None


def test_broken_bytes_are_an_error_of_the_reader_alone():
    with pytest.raises(OSError, match="cannot identify"):
        _ = make_progress(SIGN, [b"rubbish"]).preview_image
    Image.open(io.BytesIO(PNG)).close()


def test_the_core_hands_the_picture_on():
    desk = connected()
    key = desk.submit(1, preview=True)
    (submit,) = desk.take(messages.Submit)
    assert submit.preview
    desk.hear(messages.Progress(request_id=key, step=1, steps=2), b"picture")
    assert [(report.key, report.progress.step, report.payload) for report in desk.reports] == [
        (key, 1, (b"picture",))
    ]


def test_a_reader_that_never_reads_keeps_few_pictures_and_every_step():
    job = Job(rid(1), 7, transport=None, owner=None, progress=True)
    for step in range(100):
        job.report(messages.Progress(request_id=rid(1), step=step, steps=100), [PNG])
    signs = [job.signs().get_nowait() for _ in range(100)]
    assert [sign.step for sign in signs] == list(range(100))
    assert sum(sign.preview is not None for sign in signs) == MAX_BEHIND
    job.report(SIGN, [PNG])
    assert job.signs().get_nowait().preview == PNG


def test_a_reader_that_never_reads_keeps_few_places_and_the_job_knows_the_latest():
    job = Job(rid(1), 7, transport=None, owner=None, progress=True)
    assert job.latest is None
    for place in reversed(range(1000)):
        job.report(messages.Progress(request_id=rid(1), state="queued", place=place), ())
        assert job.latest.place == place
    assert job.signs().qsize() == MAX_BEHIND
    job.report(SIGN, ())
    assert job.latest.step == 2
    assert job.signs().qsize() == MAX_BEHIND + 1

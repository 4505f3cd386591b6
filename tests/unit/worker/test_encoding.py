"""Encoding of results on threads, and the mailbox that wakes the main thread."""

import io
import select

import pytest
from PIL import Image

from imagegen_worker.core.events import Failed, Finished, Stop
from imagegen_worker.images.encoding import EncodePool, RawResult
from imagegen_worker.images.files import encode_png
from imagegen_worker.mailbox import Mailbox
from tests.unit.worker.bench import resolved


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


def raw(*images, **fields):
    return RawResult(
        number=3,
        images=images,
        request=resolved(seeds=tuple(range(len(images))), **fields),
        batch_size=2,
        queue_seconds=1.0,
        generation_seconds=2.0,
    )


def wait(mailbox):
    readable, _, _ = select.select([mailbox.fileno()], [], [], 60)
    assert readable, "nothing was posted"
    return mailbox.events()


def test_png_is_lossless():
    image = Image.effect_noise((16, 8), 50).convert("RGB")
    with Image.open(io.BytesIO(encode_png(image))) as back:
        assert back.format == "PNG"
        assert back.tobytes() == image.tobytes()


def test_a_result_is_posted_with_images_descriptions_and_times(mailbox, pool):
    pool.submit(raw(Image.new("RGB", (16, 8)), Image.new("RGB", (16, 8), "red")))
    (finished,) = wait(mailbox)
    assert isinstance(finished, Finished)
    assert (finished.number, finished.batch_size) == (3, 2)
    assert (finished.queue_seconds, finished.generation_seconds) == (1.0, 2.0)
    assert finished.encode_seconds >= 0.0
    assert [(i.format, i.width, i.height, i.seed) for i in finished.infos] == [
        ("png", 16, 8, 0),
        ("png", 16, 8, 1),
    ]
    assert all(image.startswith(b"\x89PNG") for image in finished.images)


def test_an_encoding_error_fails_the_job(mailbox, pool):
    pool.submit(raw(Image.new("HSV", (8, 8))))
    (failed,) = wait(mailbox)
    assert isinstance(failed, Failed)
    assert (failed.number, failed.code) == (3, "generation_failed")
    assert "could not be encoded" in failed.message


def test_an_empty_mailbox_returns_no_command(mailbox):
    assert mailbox.take(0) is None
    assert mailbox.take(-1.0) is None
    assert mailbox.take(0.001) is None
    mailbox.put(Stop())
    assert mailbox.take(None) == Stop()


def test_many_events_are_received_in_order_after_one_wake_up(mailbox):
    events = [Failed(number, "x", "m") for number in range(100_000)]  # more than the pipe holds
    for event in events:
        mailbox.post(event)
    assert wait(mailbox) == events
    readable, _, _ = select.select([mailbox.fileno()], [], [], 0)
    assert not readable


def test_an_event_posted_to_a_closed_mailbox_is_dropped():
    mailbox = Mailbox()
    mailbox.close()
    mailbox.post(Failed(1, "x", "m"))

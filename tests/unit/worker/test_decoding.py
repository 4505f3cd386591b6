"""Decoding of input images: orientation, conversion, resizing, and rejection of invalid files."""

import dataclasses
import functools
import io
import itertools
import random
import struct
import threading
import zlib

import pytest
from PIL import Image, ImageDraw

from imagegen_protocol import InvalidRequestError
from imagegen_protocol.images import MAX_CHUNKS
from imagegen_protocol.request import make_request
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.events import Decode, Decoded, Failed
from imagegen_worker.core.model import Model
from imagegen_worker.images.decoding import (
    MAX_REFERENCE_PIXELS,
    MIN_REFERENCE_SIDE,
    decode_inputs,
    reference_size,
)
from imagegen_worker.images.encoding import EncodePool
from imagegen_worker.mailbox import Mailbox
from tests.pictures import huge_png, huge_webp, with_empty_chunks
from tests.unit.worker.test_encoding import wait

MODEL = Model(
    name="m",
    num_inference_steps=10,
    guidance_scale=1.0,
    width=64,
    height=64,
    size_multiple=8,
    max_side=256,
    tasks={
        "text-to-image": TaskCapabilities(),
        "image-to-image": TaskCapabilities(strength=0.5),
        "inpainting": TaskCapabilities(strength=0.5),
    },
)


def encoded(image, format_="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format_, **options)
    return buffer.getvalue()


def sample(width=64, height=48):
    image = Image.new("RGB", (width, height), "navy")
    ImageDraw.Draw(image).rectangle((0, 0, width // 2, height // 2), fill="orange")
    return image


def decode(image, mask=None, **fields):
    frames = (image,) if mask is None else (image, mask)
    names = ["image", "mask_image"][: len(frames)]
    return decode_inputs(make_request(prompt="p", seed=1, inputs=names, **fields), MODEL, frames)


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_each_format_is_detected_from_its_bytes(format_):
    options = {"lossless": True} if format_ == "WEBP" else {"quality": 100} if format_ == "JPEG" else {}
    resolved = decode(encoded(sample(), format_, **options))
    assert (resolved.image.mode, resolved.image.size, resolved.width, resolved.height) == ("RGB", (64, 48), 64, 48)
    if format_ != "JPEG":
        assert resolved.image.tobytes() == sample().tobytes()


@pytest.mark.parametrize(
    ("own", "requested", "resolved"),
    [
        ((64, 48), {}, (64, 48)),
        ((71, 55), {}, (64, 48)),
        ((3, 1), {}, (8, 8)),
        ((71, 55), {"width": 128}, (128, 48)),
        ((600, 600), {"width": 64, "height": 256}, (64, 256)),
    ],
)
def test_the_output_has_the_requested_size_or_that_of_the_image(own, requested, resolved):
    request = decode(encoded(sample(*own)), encoded(sample(*own)), **requested)
    assert (request.width, request.height) == resolved
    assert request.image.size == request.mask_image.size == resolved


def test_the_error_for_an_image_too_large_for_the_model_names_the_field_to_set():
    with pytest.raises(InvalidRequestError, match=r"width: .* at most 256 pixels, and the input image has 600"):
        decode(encoded(sample(600, 64)))


def test_the_mask_is_converted_to_grey_and_frames_are_assigned_by_inputs():
    mask = Image.new("RGB", (64, 48), "white")
    request = make_request(prompt="p", seed=1, inputs=["mask_image", "image"])
    resolved = decode_inputs(request, MODEL, (encoded(mask), encoded(sample())))
    assert (resolved.task, resolved.mask_image.mode, resolved.mask_image.getextrema()) == (
        "inpainting",
        "L",
        (255, 255),
    )
    assert resolved.image.tobytes() == sample().tobytes()


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "WEBP"])
def test_the_exif_orientation_is_applied(format_):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    resolved = decode(encoded(sample(64, 48), format_, exif=exif))
    assert (resolved.width, resolved.height) == (48, 64)
    red, _, blue = resolved.image.getpixel((44, 4))
    assert red > blue, "the top left corner is now at the top right"


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_is_converted(mode):
    grey = Image.new("I;16", (64, 48), 0x8000) if mode == "I;16" else sample().convert(mode)
    resolved = decode(encoded(grey), encoded(grey))
    assert (resolved.image.mode, resolved.mask_image.mode) == ("RGB", "L")
    if mode == "I;16":
        assert resolved.image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (b"", "image: expected a PNG, JPEG or WebP image, got 0 bytes"),
        (
            b"just some text",
            r"image: expected a PNG, JPEG or WebP image, got 14 bytes that start with b'just som'",
        ),
        (encoded(sample(), "GIF"), "image: expected a PNG, JPEG or WebP"),
        (encoded(sample())[:-30], "image: the png image cannot be decoded"),
        (encoded(sample(), "JPEG")[:-30], "image: the jpeg image cannot be decoded"),
        (encoded(sample(), "WEBP")[:-30], "image: the webp image cannot be decoded"),
        (b"\x89PNG\r\n\x1a\n" + bytes(40), "image: the png image cannot be decoded"),
        (b"\xff\xd8\xff" + bytes(40), "image: the jpeg image cannot be decoded"),
        (b"RIFF\x20\0\0\0WEBPVP8 " + bytes(40), "image: the webp image cannot be decoded"),
        (huge_png(50_000, 50_000), "image: expected at most 8192x8192 pixels, got 50000x50000"),
        (huge_png(8_193, 1), "image: expected at most 8192x8192 pixels, got 8193x1"),
        (huge_webp(16_000, 16_000), "image: "),
    ],
)
def test_an_invalid_image_is_rejected(frame, words):
    with pytest.raises(InvalidRequestError, match=words):
        decode(frame)
    assert decode(encoded(sample())).image is not None


def test_a_decompression_bomb_in_a_text_chunk_is_rejected():
    image = encoded(sample())
    content = b"zTXt" + b"k\0\0" + zlib.compress(bytes(200_000_000), 9)
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    with pytest.raises(InvalidRequestError, match=r"png image cannot be decoded: .*too large"):
        decode(image[:33] + chunk + image[33:])


def test_the_mask_must_have_the_size_of_the_image():
    with pytest.raises(
        InvalidRequestError, match="mask_image: expected the size of the image, 64x48 pixels, got 48x"
    ):
        decode(encoded(sample()), encoded(sample(48, 64)))
    with pytest.raises(InvalidRequestError, match="mask_image: expected a PNG"):
        decode(encoded(sample()), b"mask")


def test_a_damaged_file_is_decoded_or_rejected():
    chance = random.Random(1)
    for format_, _ in itertools.product(["PNG", "JPEG", "WEBP"], range(60)):
        data = bytearray(encoded(sample(), format_))
        for _ in range(chance.randint(1, 8)):
            data[chance.randrange(12, len(data))] = chance.randrange(256)
        try:
            resolved = decode(bytes(data))
        except InvalidRequestError:
            continue
        else:
            assert resolved.image.mode == "RGB"


# ---- in the pool -------------------------------------------------------------------------------------------


@pytest.fixture
def mailbox():
    mailbox = Mailbox()
    yield mailbox
    mailbox.close()


def decode_event(number, frame):
    return Decode(number, make_request(prompt="p", seed=1, inputs=["image"]), MODEL, (frame,))


def test_the_pool_posts_an_event_for_each_job(mailbox):
    pool = EncodePool(mailbox, threads=1)
    pool.decode(decode_event(1, encoded(sample())))
    pool.decode(decode_event(2, b"text"))
    events = [*wait(mailbox)]
    while len(events) < 2:
        events += wait(mailbox)
    pool.close()
    assert isinstance(events[0], Decoded)
    assert (events[0].number, events[0].request.image.size) == (1, (64, 48))
    assert isinstance(events[1], Failed)
    assert (events[1].number, events[1].code) == (2, "invalid_request")


def test_a_job_cancelled_before_its_turn_is_not_decoded(mailbox, monkeypatch):
    started, proceed, decoded = threading.Event(), threading.Event(), []

    def slow(request, model, frames):
        started.set()
        assert proceed.wait(60)
        decoded.append(frames[0])
        return decode_inputs(request, model, frames)

    monkeypatch.setattr("imagegen_worker.images.encoding.decode_inputs", functools.partial(slow))
    pool = EncodePool(mailbox, threads=1)
    for number in range(3):
        pool.decode(decode_event(number, encoded(sample(8 + 8 * number))))
    assert started.wait(60)
    pool.cancel(1)
    pool.cancel(7)
    proceed.set()
    numbers = []
    while 2 not in numbers:
        numbers += [event.number for event in wait(mailbox)]
    pool.close()
    assert numbers == [0, 2]


def test_an_unexpected_error_fails_the_job(mailbox, monkeypatch):
    def broken(request, model, frames):
        raise MemoryError("no more")

    monkeypatch.setattr("imagegen_worker.images.encoding.decode_inputs", broken)
    pool = EncodePool(mailbox)
    pool.decode(decode_event(4, b""))
    (failed,) = wait(mailbox)
    pool.close()
    assert (failed.number, failed.code) == (4, "generation_failed")
    assert "MemoryError" in failed.message


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_an_image_of_very_many_chunks_is_rejected_before_it_is_decoded(before):
    """Pillow reads each chunk in Python: 2.6 million would hold the interpreter's lock for seconds."""
    request = make_request(prompt="x", seed=1, inputs=["image"])
    assert decode_inputs(request, MODEL, [with_empty_chunks(100, before)]).image is not None
    with pytest.raises(
        InvalidRequestError, match="image: the png image cannot be decoded: expected a PNG with at"
    ):
        decode_inputs(request, MODEL, [with_empty_chunks(MAX_CHUNKS, before)])


@pytest.mark.parametrize("piece", [b"\xff\xfe\0\2", b"\xff\xd0"])
def test_a_jpeg_of_very_many_segments_is_rejected(piece):
    data = encoded(sample(), "JPEG")
    request = make_request(prompt="x", seed=1, inputs=["image"])
    with pytest.raises(
        InvalidRequestError, match="image: the jpeg image cannot be decoded: it has more than 65536"
    ):
        decode_inputs(request, MODEL, [data[:20] + 200_000 * piece + data[20:]])


# ---- references --------------------------------------------------------------------------------------------


def test_references_keep_their_order_and_aspect_ratio_and_are_scaled():
    model = dataclasses.replace(MODEL, max_reference_images=3)
    images = [sample(100, 70), sample(4000, 3000), sample(32, 16)]
    paths = ["images[2]", "images[0]", "images[1]"]
    frames = [encoded(images[2]), encoded(images[0]), encoded(images[1])]
    request = make_request(prompt="p", seed=1, images=[None] * 3, inputs=paths)
    resolved = decode_inputs(request, model, frames)
    assert [image.size for image in resolved.images] == [(100, 70), (1182, 886), (128, 64)]
    assert (resolved.width, resolved.height) == (64, 64), "the model's default size"
    assert resolved.parameters()["images"] == [
        {"width": 100, "height": 70, "used_width": 100, "used_height": 70},
        {"width": 4000, "height": 3000, "used_width": 1182, "used_height": 886},
        {"width": 32, "height": 16, "used_width": 128, "used_height": 64},
    ]
    assert resolved.image_is_hint
    assert resolved.batch_key != dataclasses.replace(resolved, images=resolved.images[::-1]).batch_key


@pytest.mark.parametrize("size", [(1, 1), (8192, 8192), (8, 8192), (8192, 1), (64, 64)])
def test_scaled_references_are_within_the_limits(size):
    width, height = reference_size(*size)
    assert width * height <= MAX_REFERENCE_PIXELS
    assert min(width, height) >= min(MIN_REFERENCE_SIDE, 10)


def test_a_damaged_reference_is_named():
    model = dataclasses.replace(MODEL, max_reference_images=2)
    request = make_request(prompt="p", seed=1, images=[None] * 2, inputs=["images[0]", "images[1]"])
    with pytest.raises(InvalidRequestError, match=r"images\[1\]: expected a PNG, JPEG or WebP image"):
        decode_inputs(request, model, [encoded(sample()), b"x"])

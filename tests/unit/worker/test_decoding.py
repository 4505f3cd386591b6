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
from PIL import Image, ImageDraw, ImageOps

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
        ((3, 1), {}, (24, 8)),
        ((1, 1), {}, (8, 8)),
        ((71, 55), {"width": 128}, (128, 96)),
        ((71, 55), {"height": 96}, (120, 96)),
        ((600, 64), {}, (256, 24)),
        ((4000, 3000), {}, (144, 104)),
        ((600, 600), {"width": 64, "height": 256}, (64, 256)),
    ],
)
def test_the_output_has_the_requested_size_or_that_of_the_image(own, requested, resolved):
    request = decode(encoded(sample(*own)), encoded(sample(*own)), **requested)
    assert (request.width, request.height) == resolved
    assert request.image.size == request.mask_image.size == resolved


@pytest.mark.parametrize(("own", "fields"), [((600, 4), {}), ((40, 10), {"height": 128})])
def test_an_image_whose_aspect_ratio_the_model_cannot_generate_is_rejected(own, fields):
    expected = f"image: the model m generates sides of 8 to 256 pixels; .* {own[0]}x{own[1]}; set width and height"
    with pytest.raises(InvalidRequestError, match=expected):
        decode(encoded(sample(*own)), **fields)


@pytest.mark.parametrize("size", [(100, 70), (70, 100), (400, 300), (61, 61)])
def test_the_aspect_ratio_is_kept(size):
    image = Image.new("RGB", size, "black")
    ImageDraw.Draw(image).circle((size[0] // 2, size[1] // 2), min(size) // 4, fill="white")
    for fields in ({}, {"width": 128, "height": 64}):
        left, top, right, bottom = (
            decode(encoded(image), **fields).image.convert("L").point(lambda value: 255 * (value > 127)).getbbox()
        )
        assert abs((right - left) - (bottom - top)) <= 2, "a circle is still a circle"


def test_scaling_and_cropping_are_reported():
    assert decode(encoded(sample(64, 48))).warnings == ()
    assert decode(encoded(sample(100, 70))).warnings == (
        "image: scaled to 96x67 and cropped to 96x64 pixels, from 100x70",
    )
    assert decode(encoded(sample(128, 128)), width=64, height=64).warnings == (
        "image: scaled to 64x64 pixels, from 128x128",
    )


def test_a_model_with_fixed_sizes_generates_the_one_with_the_closest_aspect_ratio():
    sizes = dataclasses.replace(MODEL, sizes=((64, 64), (96, 48), (48, 96)))
    request = make_request(prompt="p", seed=1, inputs=["image"])
    for own, expected in (((400, 300), (64, 64)), ((400, 210), (96, 48)), ((100, 190), (48, 96))):
        resolved = decode_inputs(request, sizes, (encoded(sample(*own)),))
        assert (resolved.width, resolved.height) == expected


# ---- masks -------------------------------------------------------------------------------------------------


def half_mask(mode, size=(64, 48)):
    """Return a mask of which the left half is generated anew."""
    kept, anew = {"RGBA": ((0, 0, 0, 255), (0, 0, 0, 0)), "LA": ((0, 255), (0, 0))}.get(mode, (0, 255))
    mask = Image.new(mode, size, kept)
    mask.paste(anew, (0, 0, size[0] // 2, size[1]))
    return mask


def redrawn(mask, image=None):
    resolved = decode(encoded(sample(*mask.size)) if image is None else image, encoded(mask))
    return resolved.mask_image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGBA"])
def test_transparent_areas_are_generated_anew_or_white_ones(mode):
    mask = redrawn(half_mask(mode))
    assert (mask.mode, mask.getpixel((5, 5)), mask.getpixel((60, 5))) == ("L", 255, 0)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_white_areas_of_an_opaque_mask_with_an_alpha_channel_are_generated_anew(mode):
    mask = redrawn(half_mask("L").convert(mode))
    assert (mask.getpixel((5, 5)), mask.getpixel((60, 5))) == (255, 0)


def test_one_transparent_pixel_makes_transparency_the_rule():
    image = Image.new("RGBA", (64, 48), "white")
    image.putpixel((0, 0), (255, 255, 255, 0))
    mask = redrawn(image)
    assert (mask.getpixel((0, 0)), mask.getpixel((5, 5))) == (255, 0)


def test_a_transparent_palette_colour_and_a_transparent_colour():
    for mode, transparent in (("P", 0), ("RGB", (0, 0, 0)), ("L", 0)):
        image = Image.new(mode, (64, 48), 1 if mode == "P" else "white")
        image.paste(0 if mode == "P" else "black", (0, 0, 32, 48))
        data = encoded(image, transparency=transparent)
        mask = decode(encoded(sample()), data).mask_image
        assert (mask.getpixel((5, 5)), mask.getpixel((60, 5))) == (255, 0), mode


@pytest.mark.parametrize("mode", ["RGBA", "L"])
@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_of_a_mask_is_applied(orientation, format_, mode):
    stored = half_mask(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True, "exact": True} if format_ == "WEBP" else {}
    data = encoded(stored.convert("RGB") if mode == "L" else stored, format_, exif=exif, **options)
    transposed = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    shown = transposed.getchannel("A") if mode == "RGBA" else transposed.convert("L")
    mask = decode(encoded(sample(*transposed.size)), data).mask_image
    for at in ((4, 4), (mask.width - 5, 4), (4, mask.height - 5), (mask.width - 5, mask.height - 5)):
        expected = 255 - shown.getpixel(at) if mode == "RGBA" else shown.getpixel(at)
        assert mask.getpixel(at) == expected


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
        (b"", "image: expected a PNG, JPEG or WebP image, got an empty file"),
        (b"just some text", "image: expected a PNG, JPEG or WebP image, got 14 bytes of text"),
        (encoded(sample(), "GIF"), "image: expected a PNG, JPEG or WebP image, got a GIF image"),
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
    assert max(width, height) <= 8192
    assert min(width, height) >= MIN_REFERENCE_SIDE or max(size) > 64 * min(size)


def test_a_damaged_reference_is_named():
    model = dataclasses.replace(MODEL, max_reference_images=2)
    request = make_request(prompt="p", seed=1, images=[None] * 2, inputs=["images[0]", "images[1]"])
    with pytest.raises(InvalidRequestError, match=r"images\[1\]: expected a PNG, JPEG or WebP image"):
        decode_inputs(request, model, [encoded(sample()), b"x"])

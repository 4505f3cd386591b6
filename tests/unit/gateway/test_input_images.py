"""Input images of requests."""

import base64
import io

import pytest
from PIL import Image

from imagegen_gateway.core.limits import Limits
from imagegen_gateway.errors import ApiError
from imagegen_gateway.input_images import check_image, decode_base64, mask_image
from imagegen_protocol.images import MAX_CHUNKS, BoundedFile
from tests.pictures import with_empty_chunks

JFIF_END = 20
"""Position after the first segment of Pillow's JPEG files."""


def encoded(image, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def decoded(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_valid_images_are_returned_unchanged(format):
    data = encoded(Image.new("RGB", (40, 20)), format)
    assert check_image("image", data, Limits(), sets_size=True) is data


@pytest.mark.parametrize("data", [b"", b"GIF89a", encoded(Image.new("RGB", (8, 8)), "GIF"), b"\x89PNG\r\n\x1a\n"])
def test_other_data_is_rejected(data):
    with pytest.raises(ApiError, match="image: expected a PNG, JPEG or WebP") as caught:
        check_image("image", data, Limits(), sets_size=True)
    assert (caught.value.status, caught.value.param) == (422, "image")


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_png_with_very_many_chunks_is_rejected_before_it_is_opened(before, monkeypatch):
    assert check_image("image", with_empty_chunks(100, before), Limits(), sets_size=True)
    data = with_empty_chunks(MAX_CHUNKS, before)
    monkeypatch.setattr(Image, "open", None)
    with pytest.raises(ApiError, match=f"image: expected a PNG with at most {MAX_CHUNKS} chunks"):
        check_image("image", data, Limits(), sets_size=True)


@pytest.mark.parametrize("piece", [b"\xff\xfe\0\2", b"\xff\xd0", b"\xff\xf0", b"\0"])
def test_a_jpeg_with_very_many_segments_is_rejected(piece, monkeypatch):
    reads = []
    monkeypatch.setattr("imagegen_protocol.images.MAX_READS", 1000)
    monkeypatch.setattr(
        "imagegen_protocol.images.BoundedFile.read",
        lambda self, *size, read=BoundedFile.read: reads.append(1) or read(self, *size),
    )
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    assert check_image("image", data, Limits(), sets_size=True)
    reads.clear()
    with pytest.raises(ApiError, match="image: expected a PNG, JPEG or WebP"):
        check_image("image", data[:JFIF_END] + 100_000 * piece + data[JFIF_END:], Limits(), sets_size=True)
    assert len(reads) == 1001


def test_an_image_that_sets_the_size_is_subject_to_the_limits_of_the_key():
    data, limits = encoded(Image.new("RGB", (40, 20))), Limits(max_width=39)
    with pytest.raises(ApiError, match="image: the maximum size of this key is 39x8192, got 40x20") as caught:
        check_image("image", data, limits, sets_size=True)
    assert (caught.value.status, caught.value.param) == (403, "size")
    assert check_image("image", data, limits, sets_size=False) is data


def test_an_image_beyond_the_protocols_maximum_is_rejected():
    with pytest.raises(ApiError, match="image: expected at most 8192x8192 pixels, got 8193x1"):
        check_image("image", encoded(Image.new("1", (8193, 1))), Limits(), sets_size=False)


def test_transparent_areas_of_a_mask_become_white():
    mask = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    mask.putpixel((0, 0), (0, 0, 0, 0))
    converted = decoded(mask_image(encoded(mask)))
    assert (converted.mode, [converted.getpixel((x, 0)) for x in (0, 1)]) == ("L", [255, 0])


def test_a_transparent_palette_colour_becomes_white():
    mask = Image.new("P", (2, 1), 1)
    mask.putpixel((0, 0), 0)
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG", transparency=0)
    converted = decoded(mask_image(buffer.getvalue()))
    assert [converted.getpixel((x, 0)) for x in (0, 1)] == [255, 0]


@pytest.mark.parametrize("mask", [Image.new("L", (8, 8), 255), Image.new("RGBA", (8, 8), "white")])
def test_a_mask_without_transparency_is_returned_unchanged(mask):
    data = encoded(mask)
    assert mask_image(data) is data


def test_base64_and_data_urls_are_decoded_and_other_texts_rejected():
    text = base64.b64encode(b"abc").decode()
    assert decode_base64("image", text) == decode_base64("image", f"data:image/png;base64,{text}") == b"abc"
    for wrong in ("a", "data:image/png;base64,!", "https://example.org/a.png", "ä"):
        with pytest.raises(ApiError, match="image: expected an image as base64 or a data: URL"):
            decode_base64("image", wrong)


def test_long_base64_is_decoded_as_a_whole():
    data = bytes(range(256)) * 4096 + b"a"
    text = base64.b64encode(data).decode()
    assert decode_base64("image", text) == decode_base64("image", f"data:image/png;base64,{text}") == data
    for wrong in (f"{'A' * 1000}=={text}", f"{text}AAAA", text[:-1], f"{text[:500_000]}\n{text[500_000:]}"):
        with pytest.raises(ApiError, match="image: expected an image as base64 or a data: URL"):
            decode_base64("image", wrong)

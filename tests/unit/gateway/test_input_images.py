"""Input images of requests."""

import base64
import io

import pytest
from PIL import Image

from imagegen_gateway.errors import ApiError
from imagegen_gateway.input_images import check_image, decode_base64, read_inputs
from imagegen_protocol.images import MAX_CHUNKS, BoundedFile
from tests.pictures import with_empty_chunks

JFIF_END = 20
"""Position after the first segment of Pillow's JPEG files."""


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_of_an_image_is_that_of_its_display(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.new("RGB", (40, 20)), format, exif=exif)
    assert check_image("image", data) == ((20, 40) if orientation > 4 else (40, 20))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "got an empty file"),
        (b"no image", "got 8 bytes of text"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00", "got a HEIC image"),
        (b"\x00\x00\x00\x18ftypavif\x00\x00", "got an AVIF image"),
        (encoded(Image.new("RGB", (8, 8)), "GIF"), "got a GIF image"),
        (encoded(Image.new("RGB", (8, 8)), "TIFF"), "got a TIFF image"),
        (bytes(9), "got 9 bytes of an unknown format"),
    ],
)
def test_other_files_are_rejected_by_the_name_of_their_format(data, reason):
    with pytest.raises(ApiError, match=f"^image: expected a PNG, JPEG or WebP image, {reason}$") as caught:
        check_image("image", data)
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_image", "image")


@pytest.mark.parametrize("data", [b"\x89PNG\r\n\x1a\n", encoded(Image.new("RGB", (8, 8)), "JPEG")[:30]])
def test_a_damaged_image_is_rejected(data):
    with pytest.raises(ApiError, match=rf"^image: the (png|jpeg) image is damaged \({len(data)} bytes\)$"):
        check_image("image", data)


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_a_png_with_very_many_chunks_is_rejected_before_it_is_opened(before, monkeypatch):
    assert check_image("image", with_empty_chunks(100, before))
    data = with_empty_chunks(MAX_CHUNKS, before)
    monkeypatch.setattr("imagegen_gateway.input_images._OPENERS", {})
    with pytest.raises(ApiError, match=f"image: expected a PNG with at most {MAX_CHUNKS} chunks"):
        check_image("image", data)


@pytest.mark.parametrize("piece", [b"\xff\xfe\0\2", b"\xff\xd0", b"\xff\xf0", b"\0"])
def test_a_jpeg_with_very_many_segments_is_rejected(piece, monkeypatch):
    reads = []
    monkeypatch.setattr("imagegen_protocol.images.MAX_READS", 1000)
    monkeypatch.setattr(
        "imagegen_protocol.images.BoundedFile.read",
        lambda self, *size, read=BoundedFile.read: reads.append(1) or read(self, *size),
    )
    data = encoded(Image.new("RGB", (8, 8)), "JPEG")
    assert check_image("image", data)
    reads.clear()
    with pytest.raises(ApiError, match="image: the jpeg image is damaged"):
        check_image("image", data[:JFIF_END] + 100_000 * piece + data[JFIF_END:])
    assert len(reads) == 1001


@pytest.mark.parametrize("size", [(8193, 1), (20_000, 10_000)])
def test_an_image_beyond_the_protocols_maximum_is_rejected_with_its_size(size):
    expected = f"image: expected at most 8192x8192 pixels, got {size[0]}x{size[1]}"
    with pytest.raises(ApiError, match=expected):
        check_image("image", encoded(Image.new("1", size)))


def test_an_image_sets_the_size_of_the_output_unless_a_size_is_stated():
    files = {
        "image": ("image", encoded(Image.new("RGB", (40, 20)))),
        "mask_image": ("mask", encoded(Image.new("L", (40, 20)))),
    }
    inputs = read_inputs(files, sets_size=True)
    assert inputs.frames == {name: data for name, (_, data) in files.items()}, "files are sent unchanged"
    assert inputs.output_size == (40, 20)
    assert read_inputs(files, sets_size=False).output_size is None
    with pytest.raises(ApiError, match=r"^mask: expected a PNG"):
        read_inputs({"mask_image": ("mask", b"GIF89a")}, sets_size=True)


def test_base64_and_data_urls_are_decoded_and_other_texts_rejected():
    text = base64.b64encode(b"abc").decode()
    for prefix in ("", "data:image/png;base64,", "DATA:image/png;base64,", "Data:;base64,"):
        assert decode_base64("image", prefix + text) == b"abc"
    for wrong in ("a", "data:image/png;base64,!", "https://example.org/a.png", "ä"):
        with pytest.raises(ApiError, match="image: expected an image as base64 or a data: URL"):
            decode_base64("image", wrong)


def test_base64_in_lines_is_decoded():
    data = bytes(range(256)) * 4096 + b"a"
    for text in (
        base64.encodebytes(data).decode(),
        base64.encodebytes(data).decode().replace("\n", "\r\n"),
        f" {base64.b64encode(data).decode()}\n\n",
    ):
        assert decode_base64("image", text) == decode_base64("image", f"data:image/png;base64,{text}") == data


def test_long_base64_is_decoded_as_a_whole():
    data = bytes(range(256)) * 4096 + b"a"
    text = base64.b64encode(data).decode()
    assert decode_base64("image", text) == decode_base64("image", f"data:image/png;base64,{text}") == data
    for wrong in (f"{'A' * 1000}=={text}", f"{text}AAAA", text[:-1], f"{text[:500_000]}!{text[500_000:]}"):
        with pytest.raises(ApiError, match="image: expected an image as base64 or a data: URL"):
            decode_base64("image", wrong)

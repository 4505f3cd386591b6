"""Results of requests and the files they write."""

import io

import pytest
from PIL import Image, UnidentifiedImageError

from imagegen_client.result import GenerationResult
from imagegen_protocol import ProtocolError
from imagegen_protocol.images import MAX_CHUNKS
from imagegen_protocol.messages import ImageInfo, Result
from tests.pictures import with_empty_chunks


def encoded(kind="PNG", mode="RGB", colour="red"):
    out = io.BytesIO()
    Image.new(mode, (4, 2), colour).save(out, kind)
    return out.getvalue()


def a_result(*frames, kind="png"):
    info = [ImageInfo(format=kind, width=4, height=2, seed=5 + index) for index in range(len(frames))]
    header = Result(
        request_id=b"\x01" * 16, worker="w", model="m", images=info, batch_size=3, attempt=2, queue_seconds=0.1,
        generation_seconds=0.2, encode_seconds=0.3, parameters={"num_inference_steps": 4},
    )  # fmt: skip
    return GenerationResult(header, frames, 1.5)


def test_a_result_has_the_fields_of_its_header():
    result = a_result(encoded(), memoryview(encoded()))
    assert (result.seed, result.seeds, result.formats) == (5, [5, 6], ["png", "png"])
    assert (result.format, a_result(b"", kind="webp").format) == ("png", "webp")
    assert (result.worker, result.model, result.attempt, result.batch_size) == ("w", "m", 2, 3)
    assert (result.queue_seconds, result.generation_seconds, result.encode_seconds) == (0.1, 0.2, 0.3)
    assert result.parameters == {"num_inference_steps": 4}
    assert result.request_id == "01" * 16
    assert result.encoded == [encoded(), encoded()]
    assert [image.size for image in result.images] == [(4, 2), (4, 2)]
    assert result.image.getpixel((0, 0)) == (255, 0, 0)
    assert "seed=5" in repr(result)
    assert "1.500" in repr(result)


def test_undecodable_bytes_are_an_os_error():
    with pytest.raises(UnidentifiedImageError):
        _ = a_result(b"not an image").image


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
def test_an_image_of_very_many_parts_is_an_os_error(before):
    """A worker may send anything; Pillow reads each part in Python."""
    info = ImageInfo(format="png", width=8, height=8, seed=1)
    header = Result(request_id=b"\x01" * 16, worker="w", model="m", images=[info])
    assert GenerationResult(header, [with_empty_chunks(100, before)], 1.0).image.size == (8, 8)
    with pytest.raises(OSError, match="at most 16384 chunks"):
        _ = GenerationResult(header, [with_empty_chunks(MAX_CHUNKS, before)], 1.0).image


def test_a_damaged_image_is_an_os_error():
    at = encoded().index(b"IDAT") - 4
    damaged = encoded()[:at] + b"\0\0\0\2" + encoded()[at + 4 :]  # the next chunk begins in the middle of the data
    with pytest.raises(UnidentifiedImageError, match="broken PNG file"):
        _ = a_result(damaged).image


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a"])
def test_a_matching_suffix_writes_the_bytes_unchanged(tmp_path, name):
    (path,) = a_result(b"not an image").save(tmp_path / name)
    assert path.name == (name if "." in name else "a.png")
    assert path.read_bytes() == b"not an image"


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG"])
def test_jpeg_has_two_suffixes(tmp_path, name):
    (path,) = a_result(b"jpeg bytes", kind="jpeg").save(tmp_path / name)
    assert path.read_bytes() == b"jpeg bytes"


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.webp", "WEBP"), ("a.bmp", "BMP")])
def test_another_suffix_converts(tmp_path, name, kind):
    (path,) = a_result(encoded(mode="RGBA", colour=(255, 0, 0, 128))).save(str(tmp_path / name))
    with Image.open(path) as image:
        assert image.format == kind
        assert image.size == (4, 2)


def test_several_images_are_numbered(tmp_path):
    paths = a_result(b"one", b"two").save(tmp_path / "a.b.png")
    assert [path.name for path in paths] == ["a.b-0.png", "a.b-1.png"]
    assert [path.read_bytes() for path in paths] == [b"one", b"two"]


def test_an_unknown_suffix_is_a_value_error(tmp_path):
    with pytest.raises(ValueError, match="xyz"):
        a_result(encoded()).save(tmp_path / "a.xyz")


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="missing"):
        a_result(encoded()).save(tmp_path / "missing" / "a.png")


@pytest.mark.parametrize(("width", "height"), [(5, 2), (4, 3), (30_000, 30_000)])
def test_an_image_of_unexpected_size_is_rejected_before_decoding(monkeypatch, width, height):
    info = ImageInfo(format="png", width=width, height=height, seed=1)
    header = Result(request_id=b"i" * 16, worker="w", model="m", images=[info])
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("the image was decoded"))
    with pytest.raises(ProtocolError, match=f"expected an image of {width}x{height} pixels, got one of 4x2"):
        _ = GenerationResult(header, [encoded()], 0.1).images


def test_an_image_of_unexpected_format_is_rejected():
    with pytest.raises(UnidentifiedImageError):
        _ = a_result(encoded("GIF")).image

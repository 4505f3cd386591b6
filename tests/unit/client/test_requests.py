"""Conversion of keyword arguments to header and body."""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import pytest
from PIL import Image

from imagegen_client.requests import RequestOptions, build, with_frames
from imagegen_protocol import InvalidRequestError, parse_request
from imagegen_protocol.conformance.images import png
from imagegen_protocol.costs import RequestShape, shape_of
from imagegen_protocol.limits import MAX_SEED
from imagegen_protocol.parameters import PARAMETERS


def made(prompt="a red circle", **options):
    return build(prompt, options, request_id=b"k" * 16, seed=7, progress=False)


def test_options_are_split_into_header_and_body():
    submit, seed, (body,) = made(
        model="m", priority=-3, timeout_seconds=2, num_inference_steps=4, guidance_scale=2, width=64, height=32,
        num_images=2, negative_prompt="blur", seed=5,
    )  # fmt: skip
    assert (submit.request_id, submit.model, submit.priority, submit.timeout_seconds) == (b"k" * 16, "m", -3, 2.0)
    assert submit.images == 2
    request = parse_request(body)
    assert (seed, request.seed) == (5, 5)
    assert (request.num_inference_steps, request.guidance_scale, request.num_images) == (4, 2.0, 2)
    assert (request.width, request.height, request.negative_prompt) == (64, 32, "blur")


def test_none_means_absent():
    plain, _, frames = made()
    submit, seed, same = made(**dict.fromkeys(set(RequestOptions.__annotations__)))
    assert (submit, same) == (plain, frames)
    assert seed == 7, "the one made beforehand"


KINDS = {"integer": int, "number": float, "boolean": bool, "map": Mapping[str, Any]}


def test_the_typed_options_are_the_declared_parameters():
    options = get_type_hints(RequestOptions, localns={"Image": Image})
    assert set(options) == set(PARAMETERS) - {"prompt"}
    for name, parameter in PARAMETERS.items():
        if name == "prompt":
            continue
        kinds = set(get_args(options[name])) - {type(None)} or {options[name]}
        if parameter.kind == "images":
            assert [{Image.Image, str, bytes} <= set(get_args(get_args(kind)[0])) for kind in kinds] == [True]
        elif parameter.has_images:
            assert {Image.Image, str, bytes} <= kinds
        elif parameter.fields:
            fields = {field.name for field in parameter.fields}
            assert fields == {"name", "scale"}
            assert Sequence[Mapping[str, str | float]] in kinds
        else:
            kind = Literal[parameter.choices] if parameter.choices else KINDS.get(parameter.kind, str)
            assert kinds in ({kind}, set(get_args(kind)))
        # None is the absence of a value, except where the declaration has a default of its own for the client.
        optional = type(None) in get_args(options[name])
        assert optional or parameter.default is not None, name


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("seed", -1, ">= 0"),
        ("seed", MAX_SEED + 1, "9223372036854775807"),
        ("num_inference_steps", 0, ">= 1"),
        ("num_inference_steps", 1001, "<= 1000"),
        ("num_inference_steps", 2.5, "int"),
        ("guidance_scale", -0.5, ">= 0"),
        ("guidance_scale", 100.5, "<= 100"),
        ("guidance_scale", math.nan, "float"),
        ("width", 7, ">= 8"),
        ("height", 8193, "<= 8192"),
        ("width", "wide", "int"),
        ("num_images", 0, ">= 1"),
        ("num_images", 17, "<= 16"),
        ("negative_prompt", 5, "str"),
        ("negative_prompt", "x" * 10_001, "10000"),
        ("priority", 101, "<= 100"),
        ("priority", -101, ">= -100"),
        ("timeout_seconds", 0, "> 0"),
        ("timeout_seconds", -1.0, "> 0"),
        ("timeout_seconds", 8 * 24 * 3600, "604800"),
        ("timeout_seconds", math.inf, "604800"),
        ("timeout_seconds", math.nan, "float"),
        ("scheduler", "no.class", "regex"),
        ("output_format", "gif", "png or jpeg or webp"),
        ("model", "", "length >= 1"),
        ("model", "x" * 129, "length <= 128"),
        ("model", "two\nlines", "regex"),
    ],
)
def test_the_error_for_an_invalid_value_names_field_and_range(field, value, words):
    with pytest.raises(InvalidRequestError) as caught:
        made(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field}: expected")
    assert words in message
    assert repr(value)[:40] in message
    assert len(message) < 400


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", "x" * 10_001])
def test_the_error_for_an_invalid_prompt_names_it(prompt):
    with pytest.raises(InvalidRequestError, match=r"^prompt: expected `str`") as caught:
        made(prompt)
    assert len(str(caught.value)) < 400


def test_the_error_for_an_unknown_option_lists_the_known_ones():
    with pytest.raises(InvalidRequestError, match="step_count") as caught:
        made(step_count=3)
    assert "num_inference_steps" in str(caught.value)


# ---- images ------------------------------------------------------------------------------------------------


def a_file(kind, size=(4, 2), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size, "red").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_png_jpeg_and_webp_files_are_sent_unchanged(tmp_path, kind):
    path = tmp_path / "picture.txt"
    path.write_bytes(a_file(kind))
    for source in (path, str(path), a_file(kind), bytearray(a_file(kind)), memoryview(a_file(kind))):
        _, _, (body, *frames) = made(image=source, strength=0.5)
        request = parse_request(body)
        assert (request.inputs, request.strength) == (["image"], 0.5)
        assert frames == [a_file(kind)]


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
def test_other_files_are_sent_as_png(tmp_path, kind):
    path = tmp_path / "picture"
    path.write_bytes(a_file(kind))
    for source in (path, a_file(kind)):
        _, _, (_, frame) = made(image=source)
        with Image.open(io.BytesIO(frame)) as image:
            assert (image.format, image.size, image.convert("RGB").getpixel((0, 0))) == (
                "PNG",
                (4, 2),
                (255, 0, 0),
            )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "HSV", "F"])
def test_pil_images_of_every_mode_are_sent(mode):
    _, _, (body, image, mask) = made(image=Image.new(mode, (4, 2)), mask_image=Image.new("L", (4, 2)))
    assert parse_request(body).inputs == ["image", "mask_image"]
    for frame in (image, mask):
        with Image.open(io.BytesIO(frame)) as sent:
            assert (sent.format, sent.size) == ("PNG", (4, 2))


def test_the_orientation_of_a_pil_image_is_kept():
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2)).save(buffer, "JPEG", exif=exif)
    with Image.open(buffer) as image:
        _, _, (_, frame) = made(image=image)
    with Image.open(io.BytesIO(frame)) as sent:
        assert sent.getexif()[0x0112] == 6


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


def test_the_error_for_a_format_that_pillow_cannot_read_names_the_file(tmp_path):
    path = tmp_path / "photo.heic"
    path.write_bytes(HEIC)
    with pytest.raises(InvalidRequestError, match=rf"got a HEIC image \({path}\), which this Pillow can't read"):
        made(image=path)


def test_a_transparent_mask_keeps_its_transparency(tmp_path):
    path = tmp_path / "mask.tiff"
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(path)
    *_, frames = made(image=a_file("PNG"), mask_image=path)
    with Image.open(io.BytesIO(frames[-1])) as sent:
        assert sent.getchannel("A").getextrema() == (0, 0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"image": b"text"},
            "image: expected an image, got 4 bytes of text, which this Pillow can't read",
        ),
        (
            {"image": HEIC},
            "image: expected an image, got a HEIC image, which this Pillow can't read",
        ),
        ({"image": b""}, "image: expected an image, got an empty file, which this Pillow can't read"),
        ({"image": Path("nowhere.png")}, "image: nowhere.png: No such file"),
        ({"image": "."}, "image: .: Is a directory"),
        ({"image": "\0"}, "image: \\u0000: embedded null byte"),
        ({"image": "\ud800"}, "image: \\ud800: 'utf-8' codec can't encode"),
        (
            {"image": bytes([*b"DDS ", 124, *bytes(200)])},
            "image: expected an image, got 205 bytes: the image can't be",
        ),
        ({"image": 5}, "image: expected a PIL image, a path or the bytes of a file, got 5"),
        ({"image": Image.new("1", (8193, 1))}, "image: expected at most 8192x8192 pixels, got 8193x1"),
        (
            {"image": b"\x89PNG\r\n\x1a\n" + bytes(64 * 2**20)},
            "image: expected at most 67108864 bytes, got 67108872",
        ),
        ({"mask_image": a_file("PNG")}, "inputs: expected an image with the mask_image"),
        ({"strength": 0.5}, "strength: expected only with an image"),
        ({"image": a_file("PNG"), "strength": math.nan}, "strength: expected `float`"),
        ({"image": a_file("PNG"), "strength": 0}, "strength: expected `float` > 0.0, got 0"),
        ({"inputs": ["image"]}, "inputs: expected the images as image and mask_image"),
        ({"quality": 5}, "quality: expected none for the output_format 'png'"),
        ({"extra": {"x": math.inf}}, "extra: x: expected nil"),
        ({"loras": [{"na\udcffme": "a"}]}, "expected names that can be encoded as UTF-8"),
        ({"loras": [{"name": "a\udcff"}]}, "loras: expected text that can be encoded as UTF-8"),
        ({"extra": 5}, "extra: expected `object | null`"),
    ],
)
def test_invalid_images_are_errors(options, words):
    with pytest.raises(InvalidRequestError) as caught:
        made(**options)
    assert words in str(caught.value)


def test_no_program_is_run_on_the_bytes_of_an_image(monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("Ghostscript was run"))
    with pytest.raises(InvalidRequestError, match=r"image: expected an image, got .* in the format EPS"):
        made(image=a_file("EPS"))


def test_a_file_that_is_too_long_is_not_read(tmp_path):
    path = tmp_path / "long.png"
    with path.open("wb") as file:
        file.truncate(64 * 2**20 + 1)
    with pytest.raises(
        InvalidRequestError, match=r"image: expected at most 67108864 bytes, got 67108865 \(.*long"
    ):
        made(image=path)


def test_images_are_encoded_once_for_many_requests():
    options = with_frames({"image": Image.new("RGB", (4, 2)), "mask_image": None, "seed": 3})
    _, _, (_, first) = made(**options)
    _, _, (_, second) = made(**options)
    assert first is second is options["image"]


def test_extra_may_be_any_mapping():
    _, _, (body,) = made(extra={"clip_skip": 2, "sigmas": (1.0, 0.5)}, output_format="webp", quality=7)
    request = parse_request(body)
    assert request.extra == {"clip_skip": 2, "sigmas": [1.0, 0.5]}
    assert (request.output_format, request.quality) == ("webp", 7)


def test_the_header_states_the_shape_of_the_body():
    source = png(16)
    submit, _, frames = made(
        image=source, width=640, num_inference_steps=30, strength=0.5, loras=[{"name": "ink"}], priority=2
    )
    assert submit.shape == shape_of(parse_request(frames[0]))
    assert submit.shape == RequestShape(width=640, num_inference_steps=15, task="image-to-image", loras=["ink"])

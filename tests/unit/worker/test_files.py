"""Encoded files: their pixels, quality and embedded parameters."""

import io
import json

import pytest
from PIL import ExifTags, Image

from imagegen_worker.images.files import encode_image
from tests.unit.worker.bench import resolved

NOISE = Image.effect_noise((64, 64), 60).convert("RGB")


def opened(data):
    return Image.open(io.BytesIO(data))


def comment(image):
    return image.getexif().get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment]


FULL = {
    "prompt": "ein roter Kreis — 赤い円 🐕 \ud800",
    "negative_prompt": "blur",
    "seeds": (5, 6, 7),
    "task": "image-to-image",
    "strength": 0.5,
    "scheduler": "DDIMScheduler",
    "loras": (("ink", 0.5),),
    "extra": {"clip_skip": 2, "sigmas": (1.0, 0.5)},
}
EMBEDDED = {
    "model": "m",
    "prompt": FULL["prompt"],
    "negative_prompt": "blur",
    "task": "image-to-image",
    "seed": 6,
    "num_images": 1,
    "num_inference_steps": 4,
    "guidance_scale": 7.5,
    "width": 64,
    "height": 64,
    "strength": 0.5,
    "scheduler": "DDIMScheduler",
    "loras": [{"name": "ink", "scale": 0.5}],
    "extra": {"clip_skip": 2, "sigmas": [1.0, 0.5]},
}


def test_a_png_is_lossless_and_contains_the_parameters():
    with opened(encode_image(NOISE, resolved(**FULL), 6)) as image:
        assert image.format == "PNG"
        assert image.tobytes() == NOISE.tobytes()
        assert json.loads(image.text["parameters"]) == {**EMBEDDED, "output_format": "png"}


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_jpeg_and_webp_have_a_quality_and_contain_the_parameters_in_exif(kind):
    sizes = []
    for quality in (10, 95):
        request = resolved(**FULL, output_format=kind, quality=quality)
        data = encode_image(NOISE, request, 6)
        sizes.append(len(data))
        with opened(data) as image:
            assert (image.format, image.size) == (kind.upper(), (64, 64))
            found = comment(image)
        assert found[:8] == b"ASCII\0\0\0"
        assert json.loads(found[8:]) == {**EMBEDDED, "output_format": kind, "quality": quality}
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_parameters_too_long_for_exif_are_omitted(kind):
    request = resolved(prompt="🐕" * 10_000, output_format=kind, quality=90)
    with opened(encode_image(NOISE, request, 1)) as image:
        assert not image.getexif()


def test_a_png_can_contain_the_longest_prompt():
    request = resolved(prompt="🐕" * 10_000, negative_prompt="🐕" * 10_000)
    with opened(encode_image(NOISE, request, 1)) as image:
        assert json.loads(image.text["parameters"])["prompt"] == "🐕" * 10_000


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_an_image_of_any_mode_is_encoded_as_jpeg(mode):
    with opened(encode_image(NOISE.convert(mode), resolved(output_format="jpeg", quality=90), 1)) as image:
        assert image.mode in ("RGB", "L")

"""Images that come with a request."""

import base64
import io

import pytest
from PIL import Image

from imagegen_gateway.core.limits import Limits
from imagegen_gateway.errors import ApiError
from imagegen_gateway.input_images import check_image, decode_base64, mask_image


def encoded(image, format="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, format=format)
    return buffer.getvalue()


def decoded(data):
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_images_are_passed_on_as_they_are(format):
    data = encoded(Image.new("RGB", (40, 20)), format)
    assert check_image("image", data, Limits(), bounded=True) is data


@pytest.mark.parametrize("data", [b"", b"GIF89a", encoded(Image.new("RGB", (8, 8)), "GIF"), b"\x89PNG\r\n\x1a\n"])
def test_what_is_none(data):
    with pytest.raises(ApiError, match="image: expected a PNG, JPEG or WebP") as caught:
        check_image("image", data, Limits(), bounded=True)
    assert (caught.value.status, caught.value.param) == (422, "image")


def test_an_image_gives_the_size_and_so_counts_against_the_keys():
    data, limits = encoded(Image.new("RGB", (40, 20))), Limits(max_width=39)
    with pytest.raises(ApiError, match="image: this key may ask for 39x8192 at most, got 40x20") as caught:
        check_image("image", data, limits, bounded=True)
    assert (caught.value.status, caught.value.param) == (403, "size")
    assert check_image("image", data, limits, bounded=False) is data


def test_an_image_beyond_what_any_model_takes():
    with pytest.raises(ApiError, match="image: expected at most 8192x8192 pixels, got 8193x1"):
        check_image("image", encoded(Image.new("1", (8193, 1))), Limits(), bounded=False)


def test_what_is_clear_in_a_mask_is_made_anew():
    mask = Image.new("RGBA", (2, 1), (9, 9, 9, 255))
    mask.putpixel((0, 0), (0, 0, 0, 0))
    made = decoded(mask_image(encoded(mask)))
    assert (
        made.mode,
        list(made.getdata() if not hasattr(made, "get_flattened_data") else made.get_flattened_data()),
    ) == (
        "L",
        [255, 0],
    )


def test_a_palette_with_a_clear_colour_is_such_a_mask():
    mask = Image.new("P", (2, 1), 1)
    mask.putpixel((0, 0), 0)
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG", transparency=0)
    made = decoded(mask_image(buffer.getvalue()))
    assert [made.getpixel((x, 0)) for x in (0, 1)] == [255, 0]


def test_a_mask_without_transparency_stays_as_it_is():
    data = encoded(Image.new("L", (8, 8), 255))
    assert mask_image(data) is data


def test_base64():
    text = base64.b64encode(b"abc").decode()
    assert decode_base64("image", text) == decode_base64("image", f"data:image/png;base64,{text}") == b"abc"
    for wrong in ("a", "data:image/png;base64,!", "https://example.org/a.png", "ä"):
        with pytest.raises(ApiError, match="image: expected an image in base64, or a data: URL with it"):
            decode_base64("image", wrong)

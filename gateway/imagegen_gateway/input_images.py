"""Input images of requests: base64, format and size checks. Workers decode the images."""

import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field

from PIL import ExifTags
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from imagegen_client.pillow import os_errors
from imagegen_gateway.errors import ApiError
from imagegen_protocol.images import BoundedFile, describe_format, sniff_format
from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_protocol.request import OutputFormat

MAX_DATA_URL_PREFIX = 256
"""Maximum number of characters before the data of a `data:` URL."""
_SLICE = 256 * 1024
"""Characters of base64 that are decoded at once."""
# Instead of `Image.open`, whose limit on the number of pixels states no size.
_OPENERS: dict[OutputFormat, type[ImageFile]] = {
    "png": PngImageFile,
    "jpeg": JpegImageFile,
    "webp": WebPImageFile,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})
"""Values of the EXIF orientation that exchange width and height."""


@dataclass(frozen=True, slots=True)
class InputImages:
    """The checked input images of a request."""

    frames: Mapping[str, bytes] = field(default_factory=dict)
    """Image files by their path in a request (`image`, `images[0]`)."""
    output_size: tuple[int, int] | None = None
    """Width and height of the image that sets the size of the output, in pixels; None without one."""


def read_inputs(files: Mapping[str, tuple[str, bytes]], *, sets_size: bool) -> InputImages:
    """Check image files; return them. `files`: the API's field and the file by the path in a request.

    `sets_size`: the generated images have the size of `image`. Raises `ApiError` 400, which names the field.
    """
    sizes = {name: check_image(http_field, data) for name, (http_field, data) in files.items()}
    frames = {name: data for name, (_, data) in files.items()}
    return InputImages(frames, sizes.get("image") if sets_size else None)


def check_image(http_field: str, data: bytes) -> tuple[int, int]:
    """Return width and height of an image as it is displayed. Raises `ApiError` 400 for other files and sizes."""
    format_ = sniff_format(data)
    if format_ is None:
        raise _invalid(http_field, f"expected a PNG, JPEG or WebP image, got {describe_format(data)}")
    try:
        file = BoundedFile(data)
    except ValueError as error:
        raise _invalid(http_field, str(error)) from error
    try:
        with os_errors(), _OPENERS[format_](file) as image:
            width, height = image.size
            # A PNG can have it after the pixels, which are not decoded here.
            exif = image.getexif() if "exif" in image.info else {}
    except OSError as error:
        raise _invalid(http_field, f"the {format_} image is damaged ({len(data)} bytes)") from error
    if max(width, height) > MAX_SIDE_PIXELS:
        largest = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}"
        raise _invalid(http_field, f"expected at most {largest} pixels, got {width}x{height}")
    return (height, width) if exif.get(ExifTags.Base.Orientation) in _SIDEWAYS else (width, height)


def decode_base64(http_field: str, text: str) -> bytes:
    """Return the bytes of base64 text, also in lines, or of a base64 `data:` URL. Raises `ApiError` 400."""
    is_url = text[:5].lower() == "data:"
    start = text.find(",", 0, MAX_DATA_URL_PREFIX) + 1 if is_url else 0
    text = text.rstrip()
    data, rest = bytearray(), ""
    try:
        # In slices: the decoder holds the lock of the interpreter until its end.
        for at in range(start, len(text), _SLICE):
            part = rest + "".join(text[at : at + _SLICE].split())
            last = at + _SLICE >= len(text)
            end = len(part) if last else len(part) - len(part) % 4
            part, rest = part[:end], part[end:]
            if "=" in part and not last:
                raise ValueError("excess data after padding")
            data += binascii.a2b_base64(part, strict_mode=True)
        return bytes(data)
    except ValueError as error:  # binascii.Error, or non-ASCII text
        raise _invalid(http_field, f"expected an image as base64 or a data: URL: {error}") from error


def _invalid(http_field: str, reason: str) -> ApiError:
    return ApiError(400, "invalid_image", f"{http_field}: {reason}", param=http_field)

"""Input images of requests: format and size checks, and conversion of OpenAI's masks."""

import binascii
import io
import threading

from imagegen_client.pillow import os_errors
from imagegen_gateway.core.limits import Limits
from imagegen_gateway.errors import ApiError
from imagegen_protocol.images import BoundedFile
from imagegen_protocol.limits import MAX_SIDE_PIXELS

MAX_DATA_URL_PREFIX = 256
"""Maximum number of characters before the data of a `data:` URL."""
_SLICE = 256 * 1024
"""Characters of base64 that are decoded at once; a multiple of 4."""
_FORMATS = ("PNG", "JPEG", "WEBP")
_DECODING = threading.Semaphore(2)
"""Limits concurrent conversions: the largest mask needs a third of a gigabyte."""


def read_input(name: str, field: str, data: bytes, limits: Limits, *, sets_size: bool) -> bytes:
    """Check the image of parameter `name`; return its frame. Raises `ApiError`, which names the API's `field`.

    `sets_size`: the generated images have the size of this image.
    """
    image = check_image(field, data, limits, sets_size=sets_size)
    return mask_image(image) if name == "mask_image" else image


def check_image(field: str, data: bytes, limits: Limits, *, sets_size: bool) -> bytes:
    """Return an image unchanged. Raises `ApiError` for other formats and for sizes beyond the limits.

    `sets_size`: the generated images have the size of this image.
    """
    from PIL import Image

    try:
        file = BoundedFile(data)
    except ValueError as error:
        raise ApiError(422, "invalid_image", f"{field}: {error}", param=field) from error
    try:
        with os_errors(), Image.open(file, formats=_FORMATS) as image:
            width, height = image.size
    except OSError as error:
        raise ApiError(
            422,
            "invalid_image",
            f"{field}: expected a PNG, JPEG or WebP, got {len(data)} other bytes",
            param=field,
        ) from error
    if max(width, height) > MAX_SIDE_PIXELS:
        largest = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}"
        message = f"{field}: expected at most {largest} pixels, got {width}x{height}"
        raise ApiError(422, "invalid_image", message, param=field)
    over = (limits.max_width is not None and width > limits.max_width) or (
        limits.max_height is not None and height > limits.max_height
    )
    if sets_size and over:
        largest = f"{limits.max_width or MAX_SIDE_PIXELS}x{limits.max_height or MAX_SIDE_PIXELS}"
        message = f"{field}: the maximum size of this key is {largest}, got {width}x{height}"
        raise ApiError(403, "not_allowed", message, param="size")
    return data


def mask_image(data: bytes) -> bytes:
    """Convert OpenAI's mask (transparent areas are generated anew) to the fleet's (white areas are).

    A mask without transparency is returned unchanged. `data` is a result of `check_image`. Raises `ApiError`.
    """
    from PIL import Image, ImageOps

    try:
        with _DECODING, os_errors(), Image.open(BoundedFile(data), formats=_FORMATS) as image:
            if not image.has_transparency_data:
                return data
            alpha = image.convert("RGBA").getchannel("A")
            if alpha.getextrema() == (255, 255):
                return data  # an alpha channel without transparency, such as of a browser's canvas
            mask = ImageOps.invert(alpha)
    except OSError as error:
        raise ApiError(422, "invalid_image", f"mask: the image can't be decoded: {error}", param="mask") from error
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_base64(field: str, text: str) -> bytes:
    """Return the bytes of base64 text or a base64 `data:` URL. Raises `ApiError`."""
    start = text.find(",", 0, MAX_DATA_URL_PREFIX) + 1 if text.startswith("data:") else 0
    data = bytearray()
    try:
        # In slices: the decoder holds the lock of the interpreter until its end.
        for at in range(start, len(text), _SLICE):
            part = text[at : at + _SLICE]
            if "=" in part and at + _SLICE < len(text):
                raise ValueError("excess data after padding")
            data += binascii.a2b_base64(part, strict_mode=True)
        return bytes(data)
    except ValueError as error:  # binascii.Error, or non-ASCII text
        message = f"{field}: expected an image as base64 or a data: URL: {error}"
        raise ApiError(422, "invalid_image", message, param=field) from error

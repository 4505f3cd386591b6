"""Input images of requests: format and size checks, and conversion of OpenAI's masks."""

import binascii
import io
import threading

from imagegen_gateway.core.limits import Limits
from imagegen_gateway.errors import ApiError
from imagegen_protocol.limits import MAX_SIDE_PIXELS

_FORMATS = ("PNG", "JPEG", "WEBP")
_DECODING = threading.Semaphore(2)
"""Limits concurrent conversions: the largest mask needs a third of a gigabyte."""
MAX_READS = 64 * 1024
"""Maximum number of reads from a file. Decoders read each PNG chunk and JPEG segment separately, in Python."""
MAX_CHUNKS = 16 * 1024
"""Maximum number of chunks of a PNG. Encoders that write chunks of 4 KiB reach it at 64 MiB."""
_PNG_START = b"\x89PNG\r\n\x1a\n"


class _BoundedFile(io.BytesIO):
    """A file in memory that permits `MAX_READS` reads; further ones raise `ValueError`."""

    _reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read some bytes."""
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError(f"it has more than {MAX_READS} parts")
        return super().read(size)


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

    if _has_too_many_chunks(data):
        message = f"{field}: expected a PNG with at most {MAX_CHUNKS} chunks"
        raise ApiError(422, "invalid_image", message, param=field)
    try:
        with Image.open(_BoundedFile(data), formats=_FORMATS) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
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


def _has_too_many_chunks(data: bytes) -> bool:
    """Return whether a PNG has too many chunks anywhere: a decoder visits all of them, opening only the first."""
    at, chunks = len(_PNG_START), 0
    while data.startswith(_PNG_START) and at < len(data) and chunks <= MAX_CHUNKS:
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        chunks += 1
    return chunks > MAX_CHUNKS


def mask_image(data: bytes) -> bytes:
    """Convert OpenAI's mask (transparent areas are generated anew) to the fleet's (white areas are).

    A mask without transparency is returned unchanged. `data` is a result of `check_image`. Raises `ApiError`.
    """
    from PIL import Image, ImageOps

    try:
        with _DECODING, Image.open(_BoundedFile(data), formats=_FORMATS) as image:
            if not image.has_transparency_data:
                return data
            mask = ImageOps.invert(image.convert("RGBA").getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ApiError(422, "invalid_image", f"mask: the image can't be decoded: {error}", param="mask") from error
    buffer = io.BytesIO()
    mask.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_base64(field: str, text: str) -> bytes:
    """Return the bytes of base64 text or a base64 `data:` URL. Raises `ApiError`."""
    _, comma, rest = text.partition(",")
    try:
        return binascii.a2b_base64(rest if comma and text.startswith("data:") else text, strict_mode=True)
    except ValueError as error:  # binascii.Error, or non-ASCII text
        message = f"{field}: expected an image as base64 or a data: URL: {error}"
        raise ApiError(422, "invalid_image", message, param=field) from error

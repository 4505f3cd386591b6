"""Images that come with a request: what they are, how large, and OpenAI's masks turned into ours."""

import base64
import binascii
import io
import threading

from imagegen_gateway.core.limits import Limits
from imagegen_gateway.errors import ApiError
from imagegen_protocol.limits import MAX_SIDE_PIXELS

_FORMATS = ("PNG", "JPEG", "WEBP")
_DECODING = threading.Semaphore(2)
"""The largest mask takes a third of a gigabyte while it is turned."""


def read_input(name: str, field: str, data: bytes, limits: Limits, *, sets_size: bool) -> bytes:
    """Return the frame for an image parameter, checked. Raises `ApiError` that names the `field` of the API.

    `sets_size`: the images that are generated have its size.
    """
    image = check_image(field, data, limits, bounded=sets_size)
    return mask_image(image) if name == "mask_image" else image


def check_image(field: str, data: bytes, limits: Limits, *, bounded: bool) -> bytes:
    """Return an image as it is; `bounded`: what is made will be of its size. Raises `ApiError`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ApiError(
            422,
            "invalid_image",
            f"{field}: expected a PNG, JPEG or WebP, got {len(data)} other bytes",
            param=field,
        ) from error
    if max(width, height) > MAX_SIDE_PIXELS:
        most = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}"
        message = f"{field}: expected at most {most} pixels, got {width}x{height}"
        raise ApiError(422, "invalid_image", message, param=field)
    over = (limits.max_width is not None and width > limits.max_width) or (
        limits.max_height is not None and height > limits.max_height
    )
    if bounded and over:
        most = f"{limits.max_width or MAX_SIDE_PIXELS}x{limits.max_height or MAX_SIDE_PIXELS}"
        message = f"{field}: this key may ask for {most} at most, got {width}x{height}"
        raise ApiError(403, "not_allowed", message, param="size")
    return data


def mask_image(data: bytes) -> bytes:
    """Return a mask as the fleet has them (white is made anew) from one as OpenAI has them (so is what is clear).

    It holds the whole mask in memory, so that few are turned at a time.

    A mask without transparency is one of ours already. Takes what `check_image` has checked; raises `ApiError`.
    """
    from PIL import Image, ImageOps

    try:
        with _DECODING, Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if not image.has_transparency_data:
                return data
            clear = ImageOps.invert(image.convert("RGBA").getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ApiError(422, "invalid_image", f"mask: it can't be decoded: {error}", param="mask") from error
    buffer = io.BytesIO()
    clear.save(buffer, format="PNG")
    return buffer.getvalue()


def decode_base64(field: str, text: str) -> bytes:
    """Return the bytes of base64, or of a `data:` URL that has it. Raises `ApiError`."""
    _, comma, rest = text.partition(",")
    try:
        return base64.b64decode(rest if comma and text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError) as error:
        message = f"{field}: expected an image in base64, or a data: URL with it: {error}"
        raise ApiError(422, "invalid_image", message, param=field) from error

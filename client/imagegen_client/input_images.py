"""Images that go along with a request: from what the application has to bytes that can be sent."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from imagegen_protocol import InvalidRequestError
from imagegen_protocol.images import sniff_format
from imagegen_protocol.limits import MAX_FRAME_BYTES, MAX_SIDE_PIXELS

if TYPE_CHECKING:
    from PIL import Image

ImageSource = Union["Image.Image", str, os.PathLike[str], bytes, bytearray, memoryview]
"""A PIL image, the path of a file, or the bytes of one."""


def read_image(name: str, source: ImageSource) -> bytes:
    """Return the frame for an image: PNG, JPEG and WebP as they are, anything else that Pillow reads as PNG.

    `name` is the field's. Raises `InvalidRequestError` for what is no image, can't be read, or is too large.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            # Before it is read: what is too long to be sent need not be held.
            _check_length(name, path.stat().st_size, str(path))
            data = path.read_bytes()
        except OSError as error:
            raise InvalidRequestError(f"{name}: {path}: {error.strerror or error}") from error
        return _as_sent(name, data, str(path))
    if isinstance(source, bytes | bytearray | memoryview):
        return _as_sent(name, bytes(source), f"{len(source)} bytes")
    if not hasattr(source, "save"):
        kind = type(source).__name__
        raise InvalidRequestError(f"{name}: expected a PIL image, a path or the bytes of a file, got a {kind}")
    return _as_png(name, source, "the image")


def _as_sent(name: str, data: bytes, given: str) -> bytes:
    _check_length(name, len(data), given)
    if sniff_format(data) is not None:
        return data
    # Pillow takes longer to import than all the rest together.
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data)) as image:
            return _as_png(name, image, given)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidRequestError(f"{name}: expected an image, got {given}: {error}") from error


def _as_png(name: str, image: "Image.Image", given: str) -> bytes:
    if max(image.size) > MAX_SIDE_PIXELS:
        most, is_ = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}", f"{image.width}x{image.height}"
        raise InvalidRequestError(f"{name}: expected at most {most} pixels, got {is_} ({given})")
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if (orientation := image.getexif().get(0x0112)) is not None:
        from PIL import Image

        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation  # the worker turns it, once
    try:
        image.save(buffer, format="PNG", **options)
    except OSError:  # a mode that PNG does not have
        image.convert("RGB").save(buffer, format="PNG", **options)
    _check_length(name, buffer.tell(), f"{given}, as PNG")
    return buffer.getvalue()


def _check_length(name: str, length: int, given: str) -> None:
    if length > MAX_FRAME_BYTES:
        raise InvalidRequestError(
            f"{name}: expected at most {MAX_FRAME_BYTES} bytes, got {length} ({given}); a JPEG or WebP is shorter"
        )

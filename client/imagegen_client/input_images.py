"""Input images of a request: reading, conversion and size checks."""

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from imagegen_client.pillow import os_errors
from imagegen_protocol import InvalidRequestError
from imagegen_protocol.error_texts import format_value
from imagegen_protocol.images import describe_format, sniff_format
from imagegen_protocol.limits import MAX_FRAME_BYTES, MAX_SIDE_PIXELS
from imagegen_protocol.terminal import escape_controls

if TYPE_CHECKING:
    from PIL import Image

ImageSource = Union["Image.Image", str, os.PathLike[str], bytes, bytearray, memoryview]
"""A PIL image, the path of a file, or the bytes of a file."""

_PROGRAMS = ("EPS", "WMF")
"""Formats for which Pillow runs another program, such as Ghostscript, on the bytes."""


def read_image(name: str, source: ImageSource) -> bytes:
    """Return the bytes to send: PNG, JPEG and WebP unchanged, other formats that Pillow reads converted to PNG.

    `name`: the parameter, for errors. Raises `InvalidRequestError` if the image cannot be read or is too large.
    """
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        try:
            # Checked before reading: a file that is too long is not loaded.
            _check_length(name, path.stat().st_size, str(path))
            data = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: the path has a character that no path can have
            reason = getattr(error, "strerror", None) or error
            raise InvalidRequestError(f"{name}: {escape_controls(str(path))}: {reason}") from error
        return _encode(name, data, str(path))
    if isinstance(source, bytes | bytearray | memoryview):
        return _encode(name, bytes(source), f"{len(source)} bytes")
    if not hasattr(source, "save"):
        shown = format_value(source)
        raise InvalidRequestError(f"{name}: expected a PIL image, a path or the bytes of a file, got {shown}")
    return _as_png(name, source, "the image")


def _encode(name: str, data: bytes, given: str) -> bytes:
    _check_length(name, len(data), given)
    if sniff_format(data) is not None:
        return data
    # Imported late: Pillow takes longer to import than everything else together.
    from PIL import Image, UnidentifiedImageError

    try:
        with os_errors(), Image.open(io.BytesIO(data)) as image:
            if image.format in _PROGRAMS:
                raise InvalidRequestError(f"{name}: expected an image, got {given} in the format {image.format}")
            return _as_png(name, image, given)
    except UnidentifiedImageError as error:
        if error.__cause__ is not None:
            raise InvalidRequestError(f"{name}: expected an image, got {given}: {error}") from error
        file = "" if given.endswith(" bytes") else f" ({given})"
        found = f"{describe_format(data)}{file}, which this Pillow can't read"
        raise InvalidRequestError(f"{name}: expected an image, got {found}; convert it to PNG or JPEG") from error
    except OSError as error:
        raise InvalidRequestError(f"{name}: expected an image, got {given}: {error}") from error


def _as_png(name: str, image: "Image.Image", given: str) -> bytes:
    if max(image.size) > MAX_SIDE_PIXELS:
        maximum, size = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}", f"{image.width}x{image.height}"
        raise InvalidRequestError(f"{name}: expected at most {maximum} pixels, got {size} ({given})")
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if (orientation := image.getexif().get(0x0112)) is not None:
        from PIL import Image

        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation  # the worker applies the orientation
    try:
        image.save(buffer, format="PNG", **options)
    except OSError:  # a mode that PNG does not support
        image.convert("RGBA" if image.has_transparency_data else "RGB").save(buffer, format="PNG", **options)
    _check_length(name, buffer.tell(), f"{given}, as PNG")
    return buffer.getvalue()


def _check_length(name: str, length: int, given: str) -> None:
    if length > MAX_FRAME_BYTES:
        raise InvalidRequestError(
            f"{name}: expected at most {MAX_FRAME_BYTES} bytes, got {length} ({given}); use JPEG or WebP"
        )

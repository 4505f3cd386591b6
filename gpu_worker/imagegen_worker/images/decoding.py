"""The images that come with a request: checked by their headers, decoded, and brought to the size that is made.

Nobody's word is taken for what they are: formats are known by their bytes, and sizes are looked at before anything
is unpacked.
"""

import dataclasses
import io
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.images import sniff_format
from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_protocol.request import OutputFormat
from imagegen_worker.core.model import Model, ResolvedRequest

# Not by `Image.open`, which judges sizes by rules of its own, and warns for the whole process.
_OPENERS: dict[OutputFormat, Callable[[io.BytesIO], Any]] = {
    "png": PngImageFile,
    "jpeg": JpegImageFile,
    "webp": WebPImageFile,
}
_MODES = {"image": "RGB", "mask_image": "L"}


def decode_inputs(request: GenerationRequest, model: Model, frames: Sequence[bytes]) -> ResolvedRequest:
    """Return the request with nothing left open: its images decoded, and of the size of what is made.

    `frames` has an encoded image for each of `inputs`. Raises `InvalidRequestError` that names the input.
    """
    images = {name: _decode(name, frame) for name, frame in zip(request.inputs or (), frames, strict=True)}
    image, mask = images["image"], images.get("mask_image")
    if mask is not None and mask.size != image.size:
        sizes = f"{image.width}x{image.height} pixels, got {mask.width}x{mask.height}"
        raise InvalidRequestError(f"mask_image: expected the size of the image, {sizes}")
    resolved = model.resolve(request, image.size)
    size = (resolved.width, resolved.height)
    return dataclasses.replace(
        resolved, image=_resized(image, size), mask_image=None if mask is None else _resized(mask, size)
    )


def _decode(name: str, frame: bytes) -> Image.Image:
    """Return an image as it is meant to be seen, in the mode that it is used in."""
    format_ = sniff_format(frame)
    if format_ is None:
        begin = f"{len(frame)} bytes that begin with {frame[:8]!r}"
        raise InvalidRequestError(f"{name}: expected a PNG, JPEG or WebP image, got {begin}")
    try:
        image = _OPENERS[format_](io.BytesIO(frame))
        if max(image.size) <= MAX_SIDE_PIXELS:
            return _in_mode(ImageOps.exif_transpose(image), _MODES[name])
    except MemoryError:
        raise
    except Exception as error:  # broken files raise whatever Pillow stumbles over
        reason = str(error) or type(error).__name__
        raise InvalidRequestError(f"{name}: the {format_} image can't be decoded: {reason:.200}") from error
    most, is_ = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}", f"{image.width}x{image.height}"
    raise InvalidRequestError(f"{name}: expected at most {most} pixels, got {is_}")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would cut them off, not scale them
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image.convert(mode)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)

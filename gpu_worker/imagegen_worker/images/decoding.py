"""Decoding of a request's input images: checked by their headers, decoded, and resized to the output size.

Input images are untrusted: the format is detected from the bytes, and the number of their parts and the size are
checked before decompression.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.images import BoundedFile, describe_format, sniff_format
from imagegen_protocol.limits import MAX_SIDE_PIXELS
from imagegen_protocol.request import OutputFormat
from imagegen_worker.core.model import Model, ResolvedRequest

# Instead of `Image.open`, which has size limits of its own, and warnings that are global to the process.
_OPENERS: dict[OutputFormat, Callable[[BoundedFile], Any]] = {
    "png": PngImageFile,
    "jpeg": JpegImageFile,
    "webp": WebPImageFile,
}


def decode_inputs(request: GenerationRequest, model: Model, frames: Sequence[bytes]) -> ResolvedRequest:
    """Return the resolved request with its input images, which have the size of the output.

    `frames` has an encoded image for each of `inputs`. One image at a time is in memory in its own size. Raises
    `InvalidRequestError`, which names the input.
    """
    by_name = dict(zip(request.inputs or (), frames, strict=True))
    image = _decode("image", by_name["image"])
    own_size = image.size
    resolved = model.resolve(request, own_size)
    size = (resolved.width, resolved.height)
    image = _fit(image, size)
    mask = None
    if (frame := by_name.get("mask_image")) is not None:
        mask = _decode("mask_image", frame)
        if mask.size != own_size:
            sizes = f"{own_size[0]}x{own_size[1]} pixels, got {mask.width}x{mask.height}"
            raise InvalidRequestError(f"mask_image: expected the size of the image, {sizes}")
        mask = _fit(mask, size)
    return dataclasses.replace(resolved, image=image, mask_image=mask)


def _decode(name: str, frame: bytes) -> Image.Image:
    """Return an image (RGB), or a mask (L) as `_convert_mask` describes, with its EXIF orientation applied."""
    format_ = sniff_format(frame)
    if format_ is None:
        raise InvalidRequestError(f"{name}: expected a PNG, JPEG or WebP image, got {describe_format(frame)}")
    try:
        image = _OPENERS[format_](BoundedFile(frame))
        if max(image.size) <= MAX_SIDE_PIXELS:
            ImageOps.exif_transpose(image, in_place=True)
            return _convert_mask(image) if name == "mask_image" else _convert(image, "RGB")
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds of exceptions for damaged files
        reason = str(error) or type(error).__name__
        raise InvalidRequestError(f"{name}: the {format_} image cannot be decoded: {reason:.200}") from error
    limit, size = f"{MAX_SIDE_PIXELS}x{MAX_SIDE_PIXELS}", f"{image.width}x{image.height}"
    raise InvalidRequestError(f"{name}: expected at most {limit} pixels, got {size}")


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits per pixel: Pillow would clip the values instead of scaling them
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return image if image.mode == mode else image.convert(mode)


def _convert_mask(image: Image.Image) -> Image.Image:
    """Return a mask whose white areas are generated anew: the one rule for masks from all clients.

    If any pixel is transparent, transparent areas are generated anew, as in OpenAI's API; otherwise white ones.
    """
    if image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return ImageOps.invert(alpha)
    return _convert(image, "L")


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image of this size with its aspect ratio: scaled to cover it, and cropped around the centre."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)

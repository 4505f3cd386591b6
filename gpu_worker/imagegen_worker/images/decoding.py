"""Decoding of a request's input images: checked by their headers, decoded, and resized to the output size.

Input images are untrusted: the format is detected from the bytes, and the number of their parts and the size are
checked before decompression.
"""

import dataclasses
import math
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
MIN_REFERENCE_SIDE = 64
"""Minimum width and height of a reference image, in pixels; models reject smaller ones."""
MAX_REFERENCE_PIXELS = 1024 * 1024
"""Maximum area of a reference image; the models that accept several scale larger ones down to it."""


def decode_inputs(request: GenerationRequest, model: Model, frames: Sequence[bytes]) -> ResolvedRequest:
    """Return the resolved request with its input images, which have the size of the output.

    Reference images keep their aspect ratio; small and large ones are scaled (see `reference_size`). `frames`
    has an encoded image for each of `inputs`. At most one image is in memory in its own size.
    Raises `InvalidRequestError`, which names the input.
    """
    if request.images is not None:
        return _decode_references(request, model, frames)
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


def _decode_references(request: GenerationRequest, model: Model, frames: Sequence[bytes]) -> ResolvedRequest:
    resolved = model.resolve(request)
    by_path = dict(zip(request.inputs or (), frames, strict=True))
    sizes, images = [], []
    for index in range(len(request.images or ())):
        path = f"images[{index}]"
        image = _decode(path, by_path[path])
        sizes.append(image.size)
        images.append(image.resize(reference_size(*image.size), Image.Resampling.LANCZOS))
    return dataclasses.replace(resolved, images=tuple(images), given_sizes=tuple(sizes))


def reference_size(width: int, height: int) -> tuple[int, int]:
    """Return the size to which a reference image is scaled, in pixels; its aspect ratio is kept.

    It has at most `MAX_REFERENCE_PIXELS`, and no side below `MIN_REFERENCE_SIDE` unless the image is too long.
    """
    enlarged = max(1.0, MIN_REFERENCE_SIDE / min(width, height))
    longest = MAX_SIDE_PIXELS / max(width, height)
    scale = min(enlarged, longest, math.sqrt(MAX_REFERENCE_PIXELS / (width * height)))
    return max(1, int(width * scale)), max(1, int(height * scale))


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

"""Encoding of an image as a file that contains its generation parameters."""

import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

# Imported here, so that encoding the first image does not import them.
from PIL import JpegImagePlugin as JpegImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from imagegen_worker.core.model import ResolvedRequest

PNG_COMPRESS_LEVEL = 4
"""Pillow's default of 6 takes twice as long for files that are 10 % smaller."""
PARAMETERS_KEY = "parameters"
"""Name of the PNG text chunk; other programs use the same one."""
MAX_COMMENT_BYTES = 60_000
"""Longer parameters are omitted: a JPEG has at most 65,533 bytes of EXIF."""
_ASCII = b"ASCII\0\0\0"


def encode_image(image: Image.Image, request: ResolvedRequest, seed: int) -> bytes:
    """Encode an image in the format of its request, with the generation parameters embedded."""
    parameters = request.parameters_of(seed)
    if request.output_format == "png":
        return encode_png(image, parameters)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # JPEG has no transparency, and pipelines generate none
    options: dict[str, Any] = {"quality": request.quality}
    comment = _ASCII + json.dumps(parameters).encode("ascii")
    if len(comment) <= MAX_COMMENT_BYTES:
        exif = Image.Exif()
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.UserComment] = comment
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, format=request.output_format, **options)
    return buffer.getvalue()


def encode_png(image: Image.Image, parameters: Mapping[str, Any] | None = None) -> bytes:
    """Return an image as PNG, with `parameters` as JSON in a text chunk."""
    chunks = PngImagePlugin.PngInfo()
    if parameters is not None:
        chunks.add_text(PARAMETERS_KEY, json.dumps(parameters))  # other characters than ASCII are escaped
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_COMPRESS_LEVEL, pnginfo=chunks)
    return buffer.getvalue()

"""One image to the bytes of a file, with a word inside on how it was made."""

import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import ExifTags, Image, PngImagePlugin

# So that the first image need not look for its encoder.
from PIL import JpegImagePlugin as JpegImagePlugin
from PIL import WebPImagePlugin as WebPImagePlugin

from imagegen_worker.core.model import ResolvedRequest

PNG_COMPRESS_LEVEL = 4
"""6, Pillow's default, takes twice as long for files a tenth smaller."""
PARAMETERS_KEY = "parameters"
"""The text chunk of a PNG in which other programs look too."""
MAX_COMMENT_BYTES = 60_000
"""What is longer is left out: a JPEG has room for 65,533 bytes of EXIF."""
_ASCII = b"ASCII\0\0\0"


def encode_image(image: Image.Image, request: ResolvedRequest, seed: int) -> bytes:
    """Return an image in the format that its request asks for, its parameters inside."""
    parameters = request.parameters_of(seed)
    if request.output_format == "png":
        return encode_png(image, parameters)
    if image.mode not in ("L", "RGB"):
        image = image.convert("RGB")  # JPEG has no transparency, and pipelines make none
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
    """Return an image as PNG; `parameters` go into its text chunk of that name, as JSON."""
    chunks = PngImagePlugin.PngInfo()
    if parameters is not None:
        chunks.add_text(PARAMETERS_KEY, json.dumps(parameters))  # ASCII: others are escaped
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=PNG_COMPRESS_LEVEL, pnginfo=chunks)
    return buffer.getvalue()

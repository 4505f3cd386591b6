"""Result of a request: the images, their parameters, and timings."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from imagegen_client.pillow import os_errors
from imagegen_protocol import ProtocolError
from imagegen_protocol.fields import ParameterValue
from imagegen_protocol.images import BoundedFile
from imagegen_protocol.messages import ImageInfo, Result

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = {"jpeg": (".jpg", ".jpeg")}
"""Suffixes of a format, where they differ from its name."""


class GenerationResult:
    """The images of one request and how they were generated; times in seconds, sizes in pixels.

    The images arrive encoded (PNG by default) and are decoded on the first access to `images`.
    """

    def __init__(self, header: Result, frames: Sequence[bytes | memoryview], total_seconds: float) -> None:
        self._header = header
        self._frames = frames
        self.total_seconds = total_seconds
        """Time from submission to answer, measured by the client."""

    def __repr__(self) -> str:
        return (
            f"<GenerationResult {self.request_id} images={len(self._frames)} seed={self.seed} "
            f"worker={self.worker!r} total_seconds={self.total_seconds:.3f}>"
        )

    @cached_property
    def encoded(self) -> list[bytes]:
        """The encoded images as received."""
        return [bytes(frame) for frame in self._frames]

    @cached_property
    def images(self) -> list["Image.Image"]:
        """The decoded images.

        Raises `ProtocolError`, before decoding, for an image whose size differs from the header's, and `OSError`,
        such as PIL's `UnidentifiedImageError`, for one that cannot be decoded, of another format or many parts.
        """
        return [_decode(info, frame) for info, frame in zip(self._header.images, self._frames, strict=True)]

    @property
    def image(self) -> "Image.Image":
        """The first decoded image."""
        return self.images[0]

    @property
    def formats(self) -> list[str]:
        """File format of each image: `png`, `jpeg` or `webp`."""
        return [info.format for info in self._header.images]

    @property
    def format(self) -> str:
        """File format of the first image."""
        return self.formats[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each image."""
        return [(info.width, info.height) for info in self._header.images]

    @property
    def seeds(self) -> list[int]:
        """Seed of each image."""
        return [info.seed for info in self._header.images]

    @property
    def seed(self) -> int:
        """Seed of the first image."""
        return self.seeds[0]

    @property
    def request_id(self) -> str:
        """Id of the request in the logs of broker and worker, 32 hexadecimal digits."""
        return self._header.request_id.hex()

    @property
    def worker(self) -> str:
        """Name of the worker that generated the images."""
        return self._header.worker

    @property
    def model(self) -> str:
        """Name of the model that generated the images."""
        return self._header.model

    @property
    def attempt(self) -> int:
        """1 for the first attempt, more after a worker failed."""
        return self._header.attempt

    @property
    def batch_size(self) -> int:
        """Number of requests in the batch, this one included."""
        return self._header.batch_size

    @property
    def queue_seconds(self) -> float:
        """Time from the arrival at the worker to the start of the batch."""
        return self._header.queue_seconds

    @property
    def generation_seconds(self) -> float:
        """Time the batch took on the device."""
        return self._header.generation_seconds

    @property
    def encode_seconds(self) -> float:
        """Time the encoding of the images took."""
        return self._header.encode_seconds

    @property
    def parameters(self) -> dict[str, ParameterValue]:
        """Parameters the images were generated with, the model's defaults included."""
        return self._header.parameters

    @property
    def warnings(self) -> list[str]:
        """What had no effect on the images or changed them: a truncated prompt, a scaled input image, …"""
        return self._header.warnings

    def save(self, path: str | Path) -> list[Path]:
        """Write the images and return their paths; several images get `-0`, `-1`, … before the suffix.

        An image is written as received if the suffix matches its format, and converted otherwise. A path
        without a suffix gets that of the format. Raises `OSError`, and `ValueError` for an unknown suffix.
        """
        path = Path(path)
        written = []
        for index, format_ in enumerate(self.formats):
            suffix = path.suffix or f".{format_}"
            number = f"-{index}" if len(self._frames) > 1 else ""
            target = path.with_name(f"{path.stem}{number}{suffix}")
            self.save_image(index, target)
            written.append(target)
        return written

    def save_image(self, index: int, path: str | Path) -> None:
        """Write one image to `path`, whose suffix sets the format; raises as `save` does."""
        path = Path(path)
        format_ = self.formats[index]
        if path.suffix.lower() in _SUFFIXES.get(format_, (f".{format_}",)):
            path.write_bytes(self._frames[index])
        else:
            image = self.images[index]
            # JPEG supports neither transparency nor palettes.
            jpeg = path.suffix.lower() in _SUFFIXES["jpeg"]
            (image.convert("RGB") if jpeg else image).save(path)


def _decode(info: ImageInfo, frame: bytes | memoryview) -> "Image.Image":
    # Imported late: Pillow takes longer to import than everything else together.
    from PIL import Image

    # Opening reads only the size: an image announced as small must not be decoded to gigabytes.
    with os_errors():
        image = Image.open(BoundedFile(frame), formats=(info.format,))
        if image.size != (info.width, info.height):
            announced, received = f"{info.width}x{info.height}", f"{image.width}x{image.height}"
            raise ProtocolError(f"expected an image of {announced} pixels, got one of {received}")
        image.load()
    return image

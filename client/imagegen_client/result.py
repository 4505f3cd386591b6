"""What a finished request gives: the images, how they were made, and how long it took."""

import io
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from imagegen_protocol import ProtocolError
from imagegen_protocol.messages import ParameterValue, Result

if TYPE_CHECKING:
    from PIL import Image

_SUFFIXES = {"jpeg": (".jpg", ".jpeg")}
"""Suffixes that fit a format, where they are not just its name."""


class GenerationResult:
    """The images of one request and how they came about; times in seconds, sizes in pixels.

    The images arrive encoded (PNG unless asked otherwise) and are decoded when `images` is first read.
    """

    def __init__(self, header: Result, frames: Sequence[bytes | memoryview], total_seconds: float) -> None:
        self._header = header
        self._frames = frames
        self.total_seconds = total_seconds
        """From the submission to the arrival of the answer, measured here."""

    def __repr__(self) -> str:
        return (
            f"<GenerationResult {self.request_id} images={len(self._frames)} seed={self.seed} "
            f"worker={self.worker!r} total_seconds={self.total_seconds:.3f}>"
        )

    @cached_property
    def encoded(self) -> list[bytes]:
        """The images as they came over the wire."""
        return [bytes(frame) for frame in self._frames]

    @cached_property
    def images(self) -> list["Image.Image"]:
        """The images, decoded.

        Raises `ProtocolError` for one that is not what the header says, before it is decoded, and PIL's
        `UnidentifiedImageError` (an `OSError`) on broken bytes.
        """
        # Pillow takes longer to import than all the rest together.
        from PIL import Image

        decoded: list[Image.Image] = []
        for info, frame in zip(self._header.images, self._frames, strict=True):
            # Opening reads no more than the size: what claims to be a thumbnail must not unfold to gigabytes.
            image = Image.open(io.BytesIO(frame), formats=(info.format,))
            if image.size != (info.width, info.height):
                was, is_ = f"{info.width}x{info.height}", f"{image.width}x{image.height}"
                raise ProtocolError(f"an image of {was} pixels was announced, and one of {is_} came")
            image.load()
            decoded.append(image)
        return decoded

    @property
    def image(self) -> "Image.Image":
        """The first image, decoded."""
        return self.images[0]

    @property
    def formats(self) -> list[str]:
        """The encoding of each image, such as `png`."""
        return [info.format for info in self._header.images]

    @property
    def format(self) -> str:
        """The encoding of the images: `png`, `jpeg` or `webp`."""
        return self.formats[0]

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The width and the height of each image."""
        return [(info.width, info.height) for info in self._header.images]

    @property
    def seeds(self) -> list[int]:
        """The seed of each image."""
        return [info.seed for info in self._header.images]

    @property
    def seed(self) -> int:
        """The seed of the first image."""
        return self.seeds[0]

    @property
    def request_id(self) -> str:
        """The id (32 hexadecimal digits) under which broker and worker knew the request, and log it."""
        return self._header.request_id.hex()

    @property
    def worker(self) -> str:
        """The name of the worker that made it."""
        return self._header.worker

    @property
    def model(self) -> str:
        """The model that made it."""
        return self._header.model

    @property
    def attempt(self) -> int:
        """1, or more when workers died over it."""
        return self._header.attempt

    @property
    def batch_size(self) -> int:
        """Requests that were made together with this one, itself included."""
        return self._header.batch_size

    @property
    def queue_seconds(self) -> float:
        """From the arrival at the worker to the start of the batch."""
        return self._header.queue_seconds

    @property
    def generation_seconds(self) -> float:
        """Time of the batch on the device."""
        return self._header.generation_seconds

    @property
    def encode_seconds(self) -> float:
        """Time that the encoding of the images took."""
        return self._header.encode_seconds

    @property
    def parameters(self) -> dict[str, ParameterValue]:
        """What the images were really made with, the model's defaults filled in."""
        return self._header.parameters

    def save(self, path: str | Path) -> list[Path]:
        """Write the images and return the files' paths; several get `-0`, `-1`, … before the suffix.

        The bytes are written as they came when the suffix fits their format (without a suffix, the
        format's own is added), otherwise the image is converted to what the suffix says. Raises `ValueError`
        for a suffix that Pillow does not know, and `OSError`.
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
        """Write one of the images to exactly this path, whose suffix says the format; raises as `save` does."""
        path = Path(path)
        format_ = self.formats[index]
        if path.suffix.lower() in _SUFFIXES.get(format_, (f".{format_}",)):
            path.write_bytes(self._frames[index])
        else:
            image = self.images[index]
            # JPEG has no transparency, and a palette is no use to it either.
            jpeg = path.suffix.lower() in _SUFFIXES["jpeg"]
            (image.convert("RGB") if jpeg else image).save(path)

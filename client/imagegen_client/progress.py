"""Progress events as the application sees them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from imagegen_client.pillow import os_errors
from imagegen_protocol import ProtocolError, messages
from imagegen_protocol.images import read_size
from imagegen_protocol.limits import MAX_PREVIEW_BYTES, MAX_PREVIEW_SIDE_PIXELS

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a request: `queued` at the broker, or `running` with `step` of `steps` denoising steps done.

    `waiting`: no broker serves this client at the moment, because of `reason`; the client keeps trying. `steps` is
    0 unless the request is running.
    """

    step: int
    steps: int
    attempt: int = 1
    """1 for the first attempt, more after a worker failed."""
    preview: bytes | None = field(default=None, repr=False)
    """Small PNG or JPEG of the unfinished first image; None unless requested and supported by the model."""
    state: Literal["queued", "running", "waiting"] = "running"
    place: int | None = None
    """While queued: maximum number of requests ahead of it; 0 if it is next."""
    seconds_to_start: float | None = None
    """While queued: estimated seconds until it starts; None if the broker has no estimate yet."""
    reason: str = ""
    """While waiting: why no broker serves this client."""

    @property
    def preview_image(self) -> "Image.Image | None":
        """The decoded preview.

        Raises `ProtocolError`, before decoding, for one that is larger than the protocol allows, and `OSError`,
        such as PIL's `UnidentifiedImageError`, for one that cannot be decoded.
        """
        if self.preview is None:
            return None
        from PIL import Image

        # Opening reads only the size: a small file may be decoded to gigabytes.
        with os_errors():
            image = Image.open(io.BytesIO(self.preview), formats=("png", "jpeg"))
            if max(image.size) > MAX_PREVIEW_SIDE_PIXELS:
                most, size = MAX_PREVIEW_SIDE_PIXELS, f"{image.width}x{image.height}"
                raise ProtocolError(f"expected a preview of at most {most}x{most} pixels, got one of {size}")
            image.load()
        return image


def make_progress(message: messages.Progress, payload: Sequence[bytes | memoryview]) -> Progress:
    """Return the event of a progress message, without its preview if that is missing, too large or unreadable."""
    usable = len(payload) == 1 and _is_preview(payload[0])
    return Progress(
        message.step,
        message.steps,
        message.attempt,
        bytes(payload[0]) if usable else None,
        message.state,
        message.place,
        message.seconds_to_start,
    )


def _is_preview(data: bytes | memoryview) -> bool:
    """Return whether this is a small image: a file of a few kilobytes may be decoded to gigabytes."""
    if len(data) > MAX_PREVIEW_BYTES or (size := read_size(data)) is None:
        return False
    return min(size) > 0 and max(size) <= MAX_PREVIEW_SIDE_PIXELS

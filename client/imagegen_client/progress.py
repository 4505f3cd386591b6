"""Progress events as the application sees them."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from imagegen_protocol import messages
from imagegen_protocol.limits import MAX_PREVIEW_BYTES

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class Progress:
    """State of a request: `queued` at the broker, or `running` with `step` of `steps` denoising steps done.

    `steps` is 0 while the request is queued.
    """

    step: int
    steps: int
    attempt: int = 1
    """1 for the first attempt, more after a worker failed."""
    preview: bytes | None = field(default=None, repr=False)
    """Small PNG or JPEG of the unfinished first image; None unless requested and supported by the model."""
    state: Literal["queued", "running"] = "running"
    place: int | None = None
    """While queued: maximum number of requests ahead of it; 0 if it is next."""
    seconds_to_start: float | None = None
    """While queued: estimated seconds until it starts; None if the broker has no estimate yet."""

    @property
    def preview_image(self) -> "Image.Image | None":
        """The decoded preview. Raises PIL's `UnidentifiedImageError` (an `OSError`) if it cannot be decoded."""
        if self.preview is None:
            return None
        from PIL import Image

        image = Image.open(io.BytesIO(self.preview))
        image.load()
        return image


def make_progress(message: messages.Progress, payload: Sequence[bytes | memoryview]) -> Progress:
    """Return the event of a progress message, without its preview if that is missing or too large."""
    usable = len(payload) == 1 and 0 < len(payload[0]) <= MAX_PREVIEW_BYTES
    return Progress(
        message.step,
        message.steps,
        message.attempt,
        bytes(payload[0]) if usable else None,
        message.state,
        message.place,
        message.seconds_to_start,
    )

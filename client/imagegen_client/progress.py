"""A sign of progress, as the application sees it."""

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
    """How a request stands: `queued` at the broker, or `running` with `step` of `steps` denoising steps done.

    `steps` is 0 while it is queued: there is nothing to divide by yet.
    """

    step: int
    steps: int
    attempt: int = 1
    """1, unless workers died over it."""
    preview: bytes | None = field(default=None, repr=False)
    """What the first image looks like so far, as a small PNG or JPEG, where it was asked for and could be had."""
    state: Literal["queued", "running"] = "running"
    place: int | None = None
    """While queued: how many requests go before it, at most; 0: it is next."""
    seconds_to_start: float | None = None
    """While queued: when it will be begun, about; None: the broker can't tell yet."""

    @property
    def preview_image(self) -> "Image.Image | None":
        """The preview, decoded. Raises PIL's `UnidentifiedImageError` (an `OSError`) on broken bytes."""
        if self.preview is None:
            return None
        from PIL import Image

        image = Image.open(io.BytesIO(self.preview))
        image.load()
        return image


def make_progress(message: messages.Progress, payload: Sequence[bytes | memoryview]) -> Progress:
    """Return what a message tells; a picture that is none, or too long, is left out."""
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

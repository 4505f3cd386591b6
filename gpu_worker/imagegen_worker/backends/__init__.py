"""What makes images. A backend lives on the device thread and is called from nowhere else."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from imagegen_worker.core.events import Warm
from imagegen_worker.core.model import Model, ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image

Sketch = Callable[[], "Image"]
"""Draws a small picture of what there is of an image so far. Called at most once, on any thread."""


class OnStep(Protocol):
    """Called after each denoising step; raises `StoppedError` if nobody wants the rest."""

    def __call__(self, step: int, steps: int, sketches: "Sequence[Sketch | None]" = ()) -> None:
        """Take a step of `steps`; `sketches` has one for each row, or None, or is empty."""


def nobody_watches(step: int, steps: int, sketches: "Sequence[Sketch | None]" = ()) -> None:
    """An `OnStep` that takes no notice."""


CONFIG_STATUS = 78
"""The exit status of a worker that its settings keep from starting (EX_CONFIG): to be started again is no help."""


class StartError(Exception):
    """The worker can't start; the message says why in one line. `status`: what the process ends with."""

    status = CONFIG_STATUS


class NotNowError(StartError):
    """The worker can't start now, but may later: a port is taken, or memory."""

    status = 1


class DeviceMemoryError(Exception):
    """The rows do not fit on the device together; fewer may."""


class DeviceLostError(Exception):
    """The device can't be used any more by this process; only a new process helps."""


class StoppedError(Exception):
    """Raised by `on_step`: nobody wants the images of this call any more."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image to make: a request and one of its seeds. `preview`: `on_step` is to have a sketch, if it can."""

    request: ResolvedRequest
    seed: int
    preview: bool = False


class Maker(Protocol):
    """What makes images by whole calls."""

    @property
    def seconds_per_image(self) -> float | None:
        """Measured or modelled time of one image in a full batch; None while unknown."""

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """Return what requests that share a call have in common; None for a request whose images share none.

        May generate images, to find out, when a kind of request comes for the first time.
        """

    def generate(self, rows: list[Row], on_step: OnStep) -> "list[Image]":
        """Generate one image for each row; the requests of several rows have the same `call_key`.

        Raises `DeviceMemoryError` and `DeviceLostError`; passes what `on_step` raises on; anything else that it
        raises is taken for the fault of a request.
        """


class Backend(Maker, Protocol):
    """A model, or what acts like one: loaded before it makes images."""

    def weigh(self) -> int:
        """Return the bytes that the model takes when it is loaded. Raises `StartError` if it can't be."""

    def load(self) -> Model:
        """Load the model. Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`."""

    def warm_up(self) -> Warm:
        """Load the model and make a first image; return what brokers are to know."""

    def close(self) -> None:
        """Free the device."""

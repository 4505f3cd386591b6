"""The interface of the backends, which run models. A backend is called on the device thread only."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Union

from imagegen_worker.core.events import EngineReady
from imagegen_worker.core.model import Model, ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image

Sketch = Callable[[], "Image"]
"""Returns a preview of an unfinished image. Called at most once, on any thread."""


GeneratedImage = Union["Image", Callable[[], "Image"]]
"""A generated image, or a function that waits for its copy from the device and returns it, on any thread."""


def completed(image: GeneratedImage) -> "Image":
    """Return a generated image; wait for its copy from the device if necessary."""
    return image() if callable(image) else image


class OnStep(Protocol):
    """Called after each denoising step; raises `StoppedError` if all requests of the call were cancelled."""

    def __call__(self, step: int, steps: int, sketches: "Sequence[Sketch | None]" = ()) -> None:
        """Report step `step` of `steps`; `sketches` has a preview or None for each row, or is empty."""


def ignore_steps(step: int, steps: int, sketches: "Sequence[Sketch | None]" = ()) -> None:
    """Implement `OnStep` and do nothing."""


CONFIG_STATUS = 78
"""Exit status of a worker that cannot start with its settings (EX_CONFIG); a restart does not help."""


class StartError(Exception):
    """The worker cannot start; the message is one line. `status`: the exit status of the process."""

    status = CONFIG_STATUS


class TemporaryStartError(StartError):
    """The worker cannot start now but may later: a port or memory is in use."""

    status = 1


class DeviceMemoryError(Exception):
    """The rows do not fit into device memory together; fewer rows may."""


class DeviceLostError(Exception):
    """The device is unusable for this process; a new process may work."""


class StoppedError(Exception):
    """Raised by `on_step`: all requests of the call were cancelled."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image to generate: a request and one of its seeds. `preview`: pass previews to `on_step` if possible."""

    request: ResolvedRequest
    seed: int
    preview: bool = False


class ImageGenerator(Protocol):
    """Generates images, one call for a batch."""

    @property
    def seconds_per_image(self) -> float | None:
        """Measured or modelled time of one image in a full batch; None while unknown."""

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """Return the key that requests have in common if they can share a call; None: each image needs its own.

        May generate trial images for the first request of a kind.
        """

    def generate(self, rows: list[Row], on_step: OnStep) -> "Sequence[GeneratedImage]":
        """Generate one image for each row; the requests of several rows have the same `call_key`.

        Raises `DeviceMemoryError`, `DeviceLostError` and the exceptions of `on_step`; any other exception is
        attributed to a request.
        """

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """Return what the client should know about a generated request: what of it had no effect."""


class Backend(ImageGenerator, Protocol):
    """A model that is loaded before it generates images."""

    def size_bytes(self) -> int:
        """Return the bytes that the loaded model takes. Raises `StartError` if it cannot be loaded."""

    def load(self) -> Model:
        """Load the model. Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`."""

    def warm_up(self) -> EngineReady:
        """Load the model, generate a first image, and return what READY reports."""

    def close(self) -> None:
        """Free the memory of the device."""

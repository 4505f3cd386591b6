"""One call of a whole pipeline for a batch of alike requests."""

import time
from typing import TYPE_CHECKING, Any

import torch

from imagegen_worker.backends import OnStep, Row, ignore_steps
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.loading import weigh_model
from imagegen_worker.backends.diffusers.stages import translated_errors
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.events import EngineReady
from imagegen_worker.core.model import Model
from imagegen_worker.models.sources import ModelLocation

if TYPE_CHECKING:
    from PIL.Image import Image

_SMOOTHING = 0.2
"""Weight of the newest call in the moving average of the speed."""


class DiffusersBackend:
    """Implements `Backend` with a diffusers pipeline; each image has a generator of its own."""

    def __init__(self, place: ModelLocation, name: str, options: LoadOptions) -> None:
        self._source = (place, name, options)
        self._loaded: LoadedPipeline | None = None
        self._speeds: dict[int, float] = {}

    @property
    def seconds_per_image(self) -> float | None:
        """A moving average of the fullest calls so far; None before the first."""
        return self._speeds[max(self._speeds)] if self._speeds else None

    def size_bytes(self) -> int:
        """Return the bytes of the weights, on the device. Raises `StartError` if they can't be loaded."""
        return weigh_model(*self._source)

    def load(self) -> Model:
        """Load the pipeline. Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`."""
        self._loaded = LoadedPipeline(*self._source)
        return self._loaded.model

    def warm_up(self) -> EngineReady:
        """Load the pipeline and make a first image. Raises as `load` does."""
        self.load()
        assert self._loaded is not None
        # Twice: the first call of a process pays for what is set up lazily, and would spoil the measured speed.
        for _ in range(2):
            self._speeds.clear()
            self.generate([self._loaded.trial()], ignore_steps)
        return EngineReady((self._loaded.model,), self._loaded.device_name, self.seconds_per_image)

    def generate(self, rows: list[Row], on_step: OnStep) -> "list[Image]":
        """Make one image for each row; see `Backend.generate`."""
        assert self._loaded is not None, "warm_up comes first"
        if self._loaded.adapters is not None:
            self._loaded.adapters.activate(rows[0].request.loras)
        begun = time.monotonic()
        with translated_errors():
            pipeline = self._loaded.variants.pipeline(rows[0].request)
            images: list[Image] = pipeline(**self._arguments(self._loaded, rows, on_step)).images
        seconds = (time.monotonic() - begun) / len(rows)
        known = self._speeds.get(len(rows), seconds)
        self._speeds[len(rows)] = known + _SMOOTHING * (seconds - known)
        return images

    def close(self) -> None:
        """Free the device."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

    def _arguments(self, loaded: LoadedPipeline, rows: list[Row], on_step: OnStep) -> dict[str, Any]:
        request = rows[0].request
        arguments = loaded.arguments(rows)
        # On the CPU whatever the device is: the same seed gives the same noise on every card.
        arguments["generator"] = [torch.Generator("cpu").manual_seed(row.seed) for row in rows]
        if loaded.variants.takes(request, "callback_on_step_end"):

            def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                latents = tensors.get("latents")
                drawable = latents is not None and len(latents) == len(rows) and any(row.preview for row in rows)
                # Fewer than were asked for, where an image is the start.
                steps = getattr(pipeline, "num_timesteps", None) or request.num_inference_steps
                on_step(step + 1, steps, *([loaded.sketches(rows, latents)] if drawable else []))
                return tensors

            arguments["callback_on_step_end"] = after_step
        return arguments

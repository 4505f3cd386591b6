"""One call of the stock pipeline for several requests: the backend of static batching."""

import logging
import time
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from imagegen_worker.backends import (
    DeviceLostError,
    DeviceMemoryError,
    GeneratedImage,
    OnStep,
    Row,
    completed,
    ignore_steps,
)
from imagegen_worker.backends.diffusers.call_sharing import CallSharing
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.finished_images import finished_images
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.loading import weigh_model
from imagegen_worker.backends.diffusers.outputs import images_of
from imagegen_worker.backends.diffusers.shared_modules import restored_after_errors
from imagegen_worker.backends.diffusers.tiling import tile_sides, tiled
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.events import EngineReady
from imagegen_worker.core.model import Model, ResolvedRequest
from imagegen_worker.models.sources import ModelLocation

if TYPE_CHECKING:
    from PIL.Image import Image

_SMOOTHING = 0.2
"""Weight of the newest call in the moving average of the seconds of an image."""

_log = logging.getLogger(__name__)


class DiffusersBackend:
    """Implements `Backend` with a diffusers pipeline; each image has a generator of its own.

    `max_batch_size` is the largest number of images in a call. With more than 1, loading the model includes the
    trials of `call_sharing` for each kind of task.
    """

    def __init__(self, place: ModelLocation, name: str, options: LoadOptions, *, max_batch_size: int = 1) -> None:
        self._source = (place, name, options)
        self._max_batch_size = max_batch_size
        self._loaded: LoadedPipeline | None = None
        self._sharing: CallSharing | None = None
        self._speeds: dict[int, float] = {}

    @property
    def seconds_per_image(self) -> float | None:
        """Moving average over the calls with the most images so far; None before the first call."""
        return self._speeds[max(self._speeds)] if self._speeds else None

    def size_bytes(self) -> int:
        """Return the bytes of the weights on the device. Raises `StartError` if they can't be loaded."""
        return weigh_model(*self._source)

    def load(self) -> Model:
        """Load the pipeline. Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`."""
        model = self._open().model
        self._try_tasks()
        return model

    def warm_up(self) -> EngineReady:
        """Load the pipeline and generate the first images. Raises as `load` does."""
        loaded = self._open()
        # Twice: the first call includes lazy initialisation, which would distort the measured speed.
        for _ in range(2):
            self._speeds.clear()
            self.generate([loaded.trial()], ignore_steps)
        seconds = self.seconds_per_image
        self._try_tasks()
        return EngineReady((loaded.model,), loaded.device_name, seconds)

    def _open(self) -> LoadedPipeline:
        self._loaded = LoadedPipeline(*self._source)
        self._sharing = CallSharing(self._loaded, self._generate_or_none)
        return self._loaded

    def _try_tasks(self) -> None:
        assert self._loaded is not None
        assert self._sharing is not None
        if self._max_batch_size > 1:
            for task in self._loaded.model.tasks:
                self._sharing.try_task(task)

    def _generate_or_none(self, rows: Sequence[Row]) -> "list[Image] | None":
        """Generate the images of a trial; return None if the call fails.

        Raises `DeviceMemoryError` and `DeviceLostError`.
        """
        assert self._loaded is not None
        try:
            return [completed(image) for image in self._call(self._loaded, rows, ignore_steps)]
        except (DeviceLostError, DeviceMemoryError):
            raise
        except Exception as error:  # noqa: BLE001 - whatever a pipeline raises, its requests share no call
            _log.warning("a trial call failed: %s: %s", type(error).__name__, error)
            release_frames(error)
            return None

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `ImageGenerator.call_key`. The first request with another scheduler starts a trial with it."""
        assert self._sharing is not None, "warm_up comes first"
        if not self._sharing.was_tried(request):
            self._sharing.try_task(request.task, scheduler=request.scheduler)
        return self._sharing.call_key(request)

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """See `LoadedPipeline.warnings`."""
        return () if self._loaded is None else self._loaded.warnings(request)

    def generate(self, rows: list[Row], on_step: OnStep) -> list[GeneratedImage]:
        """See `ImageGenerator.generate`."""
        assert self._loaded is not None, "warm_up comes first"
        begun = time.monotonic()
        images = self._call(self._loaded, rows, on_step)
        seconds = (time.monotonic() - begun) / len(rows)
        known = self._speeds.get(len(rows), seconds)
        self._speeds[len(rows)] = known + _SMOOTHING * (seconds - known)
        return images

    def _call(self, loaded: LoadedPipeline, rows: Sequence[Row], on_step: OnStep) -> list[GeneratedImage]:
        """Generate one image for each row by one call of the pipeline; one image in tiles if memory is short.

        Raises `DeviceMemoryError`, `DeviceLostError`, and whatever the call raises.
        """
        vae = getattr(loaded.pipeline, "vae", None)
        sides = [] if vae is None or len(rows) > 1 else tile_sides(vae)
        attempts: list[AbstractContextManager[None]] = [nullcontext(), *(tiled(vae, side) for side in sides)]
        for attempt in attempts:
            try:
                with attempt, translated_errors():
                    return self._call_once(loaded, rows, on_step)
            except DeviceMemoryError as error:
                release_frames(error)
                message = str(error)
            free_device_memory()
        raise DeviceMemoryError(message)

    def _call_once(self, loaded: LoadedPipeline, rows: Sequence[Row], on_step: OnStep) -> list[GeneratedImage]:
        if loaded.adapters is not None:
            loaded.adapters.activate(loaded.adapters.load(rows[0].request.loras), fresh=True)
        pipeline = loaded.task_pipelines.pipeline(rows[0].request)
        models = [part for part in loaded.pipeline.components.values() if isinstance(part, torch.nn.Module)]
        with restored_after_errors(models):
            return finished_images(images_of(pipeline(**self._arguments(loaded, rows, on_step))))

    def close(self) -> None:
        """Free the memory of the device."""
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = self._sharing = None

    def _arguments(self, loaded: LoadedPipeline, rows: Sequence[Row], on_step: OnStep) -> dict[str, Any]:
        request = rows[0].request
        arguments = loaded.arguments(rows)
        # On the CPU for every device: the same seed gives the same noise on every GPU.
        arguments["generator"] = [torch.Generator("cpu").manual_seed(row.seed) for row in rows]
        if loaded.task_pipelines.takes(request, "callback_on_step_end"):

            def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                latents = tensors.get("latents")
                has_previews = (
                    latents is not None and len(latents) == len(rows) and any(row.preview for row in rows)
                )
                # Fewer than requested where the request has an image to start from.
                steps = getattr(pipeline, "num_timesteps", None) or request.num_inference_steps
                on_step(step + 1, steps, *([loaded.previews(rows, latents)] if has_previews else []))
                return tensors

            arguments["callback_on_step_end"] = after_step
        return arguments

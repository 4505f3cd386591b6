"""One call of a whole pipeline for a batch of alike requests."""

import inspect
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, OnStep, Row
from imagegen_worker.backends.diffusers.loading import choose_device, describe, device_name, load_pipeline
from imagegen_worker.core.events import Warm
from imagegen_worker.core.model import ResolvedRequest

if TYPE_CHECKING:
    from PIL.Image import Image

_SMOOTHING = 0.2
"""Weight of the newest call in the moving average of the speed."""


class DiffusersBackend:
    """Implements `Backend` with a diffusers pipeline; each image has a generator of its own."""

    def __init__(self, *, folder: Path, name: str, device: str, gpu: int, threads: int | None) -> None:
        self._folder = folder
        self._name = name
        self._wanted = device
        self._gpu = gpu
        self._threads = threads
        self._pipeline: Any = None
        self._parameters: frozenset[str] = frozenset()
        self._device = torch.device("cpu")
        self._speeds: dict[int, float] = {}

    @property
    def seconds_per_image(self) -> float | None:
        """A moving average of the fullest calls so far; None before the first."""
        return self._speeds[max(self._speeds)] if self._speeds else None

    def warm_up(self) -> Warm:
        """Load the pipeline and make a first image. Raises `StartError`."""
        if self._threads is not None:
            torch.set_num_threads(self._threads)
        self._device = choose_device(self._wanted, self._gpu)
        self._pipeline = load_pipeline(self._folder, self._device)
        self._parameters = frozenset(inspect.signature(self._pipeline.__call__).parameters)
        model = describe(self._pipeline, self._name, self._folder)
        first = ResolvedRequest(
            model=model.name,
            prompt="",
            negative_prompt=None,
            seeds=(0,),
            num_inference_steps=model.num_inference_steps,
            guidance_scale=model.guidance_scale,
            width=model.width,
            height=model.height,
        )
        # Twice: the first call of a process pays for what is set up lazily, and would spoil the measured speed.
        for _ in range(2):
            self._speeds.clear()
            self.generate([Row(first, 0)], lambda step, steps: None)
        return Warm((model,), device_name(self._device), self.seconds_per_image)

    def generate(self, rows: list[Row], on_step: OnStep) -> "list[Image]":
        """Make one image for each row; see `Backend.generate`."""
        begun = time.monotonic()
        try:
            images: list[Image] = self._pipeline(**self._arguments(rows, on_step)).images
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise DeviceMemoryError(str(error)) from error
        except torch.AcceleratorError as error:
            raise DeviceLostError(str(error)) from error
        seconds = (time.monotonic() - begun) / len(rows)
        known = self._speeds.get(len(rows), seconds)
        self._speeds[len(rows)] = known + _SMOOTHING * (seconds - known)
        return images

    def close(self) -> None:
        """Free the device."""
        self._pipeline = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _arguments(self, rows: list[Row], on_step: OnStep) -> dict[str, Any]:
        request = rows[0].request
        steps = request.num_inference_steps
        arguments: dict[str, Any] = {
            "prompt": [row.request.prompt for row in rows],
            "num_inference_steps": steps,
            "width": request.width,
            "height": request.height,
            # On the CPU whatever the device is: the same seed gives the same noise on every card.
            "generator": [torch.Generator("cpu").manual_seed(row.seed) for row in rows],
        }
        if request.guidance_scale is not None:
            arguments["guidance_scale"] = request.guidance_scale
        if request.negative_prompt is not None:
            arguments["negative_prompt"] = [row.request.negative_prompt for row in rows]
        if "callback_on_step_end" in self._parameters:

            def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
                on_step(step + 1, steps)
                return tensors

            arguments["callback_on_step_end"] = after_step
        return arguments

"""A pipeline as a worker uses it: loaded, described, and called with a request's arguments."""

import gc
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from imagegen_worker.backends import Row, Sketch
from imagegen_worker.backends.diffusers.adapters import Adapters
from imagegen_worker.backends.diffusers.loading import (
    choose_device,
    describe,
    device_name,
    load_pipeline,
    tune_pipeline,
)
from imagegen_worker.backends.diffusers.sketching import make_sketcher
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.model import Model, ResolvedRequest
from imagegen_worker.sources import Place


class LoadedPipeline:
    """One diffusers pipeline on its device. Raises `StartError` if there can't be one."""

    def __init__(self, place: Place, name: str, options: LoadOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = choose_device(options.device)
        self.pipeline, folder = load_pipeline(place, self.device, options)
        self.adapters: Adapters | None = None
        if options.lora_folder is not None:
            self.adapters = Adapters(self.pipeline, options.lora_folder)
        self.model: Model = replace(describe(self.pipeline, name, folder), takes_loras=self.adapters is not None)
        tune_pipeline(self.pipeline, options)  # last: a compiled module tells less of itself
        self._sketcher = make_sketcher(self.pipeline)
        self._parameters = frozenset(inspect.signature(self.pipeline.__call__).parameters)

    @property
    def device_name(self) -> str:
        """What brokers show: `cpu`, or the card's own name."""
        return device_name(self.device)

    def takes(self, parameter: str) -> bool:
        """Say whether the pipeline's call has a parameter."""
        return parameter in self._parameters

    def arguments(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the arguments of one call for alike rows, without generators."""
        request = rows[0].request
        prompts = [row.request.prompt for row in rows]
        arguments: dict[str, Any] = {
            "prompt": prompts if len(rows) > 1 else prompts[0],
            "num_inference_steps": request.num_inference_steps,
            "width": request.width,
            "height": request.height,
        }
        if request.guidance_scale is not None:
            arguments["guidance_scale"] = request.guidance_scale
        if request.negative_prompt is not None:
            negative = [row.request.negative_prompt for row in rows]
            arguments["negative_prompt"] = negative if len(rows) > 1 else negative[0]
        return arguments

    def sketches(self, rows: Sequence[Row], latents: Any) -> list[Sketch | None]:
        """Return what draws each row's image so far from its latents; None where it is not wanted, or can't be."""
        if self._sketcher is None:
            return []
        size = (rows[0].request.width, rows[0].request.height)
        return [
            self._sketcher.sketch(part, size) if row.preview else None
            for row, part in zip(rows, latents, strict=True)
        ]

    def trial(self, steps: int | None = None, seed: int = 0) -> Row:
        """Return a row to warm up with; `steps` None: the model's own number."""
        model = self.model
        request = ResolvedRequest(
            model=model.name,
            prompt="",
            negative_prompt=None,
            seeds=(seed,),
            num_inference_steps=steps or model.num_inference_steps,
            guidance_scale=model.guidance_scale,
            width=model.width,
            height=model.height,
        )
        return Row(request, seed)

    def close(self) -> None:
        """Free the device."""
        self.pipeline = self.adapters = self._sketcher = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

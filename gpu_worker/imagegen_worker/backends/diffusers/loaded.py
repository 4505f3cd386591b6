"""A pipeline as a worker uses it: loaded, described, and called with a request's arguments."""

import inspect
from dataclasses import replace
from pathlib import Path
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


class LoadedPipeline:
    """One diffusers pipeline on its device. Raises `StartError` if there can't be one."""

    def __init__(self, folder: Path, name: str, options: LoadOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = choose_device(options.device, options.gpu)
        self.pipeline = load_pipeline(folder, self.device, options)
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

    def arguments(self, request: ResolvedRequest) -> dict[str, Any]:
        """Return what alike requests have in common, without prompts and generators."""
        arguments: dict[str, Any] = {
            "num_inference_steps": request.num_inference_steps,
            "width": request.width,
            "height": request.height,
        }
        if request.guidance_scale is not None:
            arguments["guidance_scale"] = request.guidance_scale
        return arguments

    def sketch(self, row: Row, latents: Any) -> Sketch | None:
        """Return what draws the latents of a row's image so far; None if that is not wanted, or can't be had."""
        if not row.preview or self._sketcher is None:
            return None
        return self._sketcher.sketch(latents, (row.request.width, row.request.height))

    def trial(self, steps: int | None = None) -> Row:
        """Return a row to warm up with; `steps` None: the model's own number."""
        model = self.model
        request = ResolvedRequest(
            model=model.name,
            prompt="",
            negative_prompt=None,
            seeds=(0,),
            num_inference_steps=steps or model.num_inference_steps,
            guidance_scale=model.guidance_scale,
            width=model.width,
            height=model.height,
        )
        return Row(request, 0)

    def close(self) -> None:
        """Free the device."""
        self.pipeline = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

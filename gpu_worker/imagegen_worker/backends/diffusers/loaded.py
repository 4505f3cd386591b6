"""A pipeline as a worker uses it: loaded, described, and called with a request's arguments."""

import gc
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from imagegen_common.logs import log
from imagegen_protocol import GenerationRequest
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
from imagegen_worker.backends.diffusers.variants import Variants
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.model import Model, Task
from imagegen_worker.models.sources import Place

_log = logging.getLogger(__name__)

_SHORT = 4
"""Steps with which it is tried whether a kind of task can be done at all."""


class LoadedPipeline:
    """One diffusers pipeline on its device. Raises `StartError` if there can't be one."""

    def __init__(self, place: Place, name: str, options: LoadOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = choose_device(options.device)
        if options.deterministic and self.device.type == "cpu" and not torch.backends.mkl.is_available():
            log(_log, logging.WARNING, "--deterministic promises equal bits with MKL only; this torch has no MKL")
        self.pipeline, folder = load_pipeline(place, self.device, options)
        self.adapters: Adapters | None = None
        if options.lora_folder is not None:
            self.adapters = Adapters(self.pipeline, options.lora_folder)
        self.variants = Variants(self.pipeline)
        described = describe(self.pipeline, name, folder, self.variants)
        names = () if self.adapters is None else tuple(self.adapters.names())
        self.model: Model = replace(described, takes_loras=self.adapters is not None, loras=names)
        tune_pipeline(self.pipeline, options)  # last: a compiled module tells less of itself
        self.variants.share(self.pipeline)
        for task in list(self.model.tasks)[1:]:
            self.variants.prove(self.trial(_SHORT, task=task))
        self.model = replace(self.model, tasks=self.variants.capabilities)
        self._sketcher = make_sketcher(self.pipeline)

    @property
    def device_name(self) -> str:
        """What brokers show: `cpu`, or the card's own name."""
        return device_name(self.device)

    def arguments(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return what one call for alike rows is given, all but generators and callbacks."""
        return self.variants.arguments(rows)

    def sketches(self, rows: Sequence[Row], latents: Any) -> list[Sketch | None]:
        """Return what draws each row's image so far from its latents; None where it is not wanted, or can't be."""
        if self._sketcher is None:
            return []
        size = (rows[0].request.width, rows[0].request.height)
        return [
            self._sketcher.sketch(part, size) if row.preview else None
            for row, part in zip(rows, latents, strict=True)
        ]

    def trial(self, steps: int | None = None, seed: int = 0, task: Task | None = None, **fields: Any) -> Row:
        """Return a row to warm up with; `steps`, `task` None: the model's own number, and first task.

        `fields` are those of the request that are to be other than usual.
        """
        model = self.model
        kind: Task = next(iter(model.tasks)) if task is None else task
        inputs = {"text-to-image": [], "image-to-image": ["image"], "inpainting": ["image", "mask_image"]}[kind]
        asked = GenerationRequest(
            prompt=f"picture {seed}",
            seed=seed,
            num_inference_steps=max(steps or model.num_inference_steps, model.least_steps(kind)),
            inputs=inputs,
        )
        request = model.resolve(asked)
        size = (model.width, model.height)
        if inputs:
            request = replace(request, image=Image.new("RGB", size, "grey"))
            if not request.image_is_hint:
                grey = 64 + 32 * (seed % 5)  # images that differ, where each row may have its own
                request = replace(request, image=Image.new("RGB", size, (grey, grey, grey)))
        if "mask_image" in inputs:
            request = replace(request, mask_image=Image.new("L", size, "white"))
        return Row(replace(request, **fields), seed)

    def close(self) -> None:
        """Free the device."""
        self.variants.close()
        self.pipeline = self.adapters = self._sketcher = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

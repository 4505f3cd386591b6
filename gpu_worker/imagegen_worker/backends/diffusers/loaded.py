"""A loaded pipeline with its capabilities, adapters, task pipelines and previews."""

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
from imagegen_worker.backends.diffusers.determinism import use_deterministic_kernels
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.loading import (
    choose_device,
    describe,
    device_name,
    load_pipeline,
    tune_pipeline,
)
from imagegen_worker.backends.diffusers.previews import fit_latent_preview
from imagegen_worker.backends.diffusers.prompt_limits import PromptLimits
from imagegen_worker.backends.diffusers.references import max_reference_images
from imagegen_worker.backends.diffusers.task_pipelines import TaskPipelines
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.model import Model, ResolvedRequest, Task
from imagegen_worker.models.sources import ModelLocation

_log = logging.getLogger(__name__)

_SHORT = 4
"""Denoising steps of the image that checks a kind of task."""
TRIAL_STEPS = 2
"""Denoising steps of a trial image."""


class LoadedPipeline:
    """One diffusers pipeline on its device. Raises `StartError` if it can't be loaded."""

    def __init__(self, place: ModelLocation, name: str, options: LoadOptions) -> None:
        if options.threads is not None:
            torch.set_num_threads(options.threads)
        self.device = choose_device(options.device)
        if options.deterministic and self.device.type == "cuda":
            use_deterministic_kernels()
        if options.deterministic and self.device.type == "cpu" and not torch.backends.mkl.is_available():
            log(_log, logging.WARNING, "--deterministic promises equal bits with MKL only; this torch has no MKL")
        self.pipeline, folder = load_pipeline(place, self.device, options)
        self.adapters: Adapters | None = None
        if options.lora_folder is not None and hasattr(self.pipeline, "load_lora_weights"):
            self.adapters = Adapters(self.pipeline, options.lora_folder)
        elif options.lora_folder is not None:
            kind = type(self.pipeline).__name__
            log(
                _log, logging.WARNING, "--lora-folder ignored: the model takes no LoRAs", model=name, pipeline=kind
            )
        self.task_pipelines = TaskPipelines(self.pipeline)
        described = describe(self.pipeline, name, folder, self.task_pipelines)
        names = () if self.adapters is None else tuple(self.adapters.names())
        self.model: Model = replace(described, takes_loras=self.adapters is not None, loras=names)
        tune_pipeline(self.pipeline, options)  # last: a compiled module has no signature
        self.task_pipelines.update_models(self.pipeline)
        for task in list(self.model.tasks)[1:]:
            self.task_pipelines.check_task(self.trial(_SHORT, task=task))
        sizes = () if options.compile else self._fixed_sizes()  # another size would take a compilation
        self.model = replace(self.model, tasks=self.task_pipelines.capabilities, sizes=sizes)
        self.model = replace(self.model, max_reference_images=self._max_reference_images())
        self._latent_preview = fit_latent_preview(self.pipeline)
        self._prompt_limits = PromptLimits(self.pipeline)

    def _fixed_sizes(self) -> tuple[tuple[int, int], ...]:
        """Return the only sizes of a pipeline that ignores the requested one; empty if it does not.

        A pipeline may scale every size to the area of its training images, or to the nearest of a list.
        """
        model = self.model
        if next(iter(model.tasks)) == "inpainting":
            return ()
        width = max(model.width // 2 // model.size_multiple, 1) * model.size_multiple
        row = self.trial(TRIAL_STEPS, width=width)
        if row.request.image is not None:
            row = replace(row, request=replace(row.request, image=Image.new("RGB", (width, model.height), "grey")))
        if width == model.width or self.task_pipelines.generated_size(row) in (None, (width, model.height)):
            return ()
        listed = getattr(self.pipeline, "resolutions", None) or ()
        sizes = {(model.width, model.height), *((int(side[0]), int(side[1])) for side in listed)}
        log(_log, logging.WARNING, "the pipeline ignores other sizes", sizes=" ".join(map(_show, sorted(sizes))))
        return tuple(sorted(sizes))

    def _max_reference_images(self) -> int:
        """Return how many reference images a request may have, after a trial with two of different sizes."""
        limit = max_reference_images(self.pipeline)
        if not limit or "image-to-image" not in self.model.tasks:
            return 0
        width, height = self.model.width, self.model.height
        images = (
            Image.new("RGB", (width, height), "grey"),
            Image.new("RGB", (width, 2 * height), "white"),
        )
        row = self.trial(_SHORT, task="image-to-image", image=None, images=images)
        return limit if self.task_pipelines.generated_size(row) is not None else 0

    @property
    def device_name(self) -> str:
        """Name for brokers: `cpu`, or the name of the GPU."""
        return device_name(self.device)

    def arguments(self, rows: Sequence[Row]) -> dict[str, Any]:
        """See `TaskPipelines.arguments`."""
        return self.task_pipelines.arguments(rows)

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """See `ImageGenerator.warnings`: texts that were truncated, and LoRAs that fit in part."""
        loras = () if self.adapters is None else self.adapters.warnings(request.loras)
        return (*self._prompt_limits.warnings(request), *loras)

    def previews(self, rows: Sequence[Row], latents: Any) -> list[Sketch | None]:
        """Return functions that make the preview of each row from its latents; None for rows without one."""
        if self._latent_preview is None:
            return []
        size = (rows[0].request.width, rows[0].request.height)
        return [
            self._latent_preview.preview(part, size) if row.preview else None
            for row, part in zip(rows, latents, strict=True)
        ]

    def trial(self, steps: int | None = None, seed: int = 0, task: Task | None = None, **fields: Any) -> Row:
        """Return a row for warm-up and trials; by default with the model's default steps and first task.

        `fields` override fields of the request.
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
        """Free the memory of the device."""
        self.task_pipelines.close()
        self.pipeline = self.adapters = self._latent_preview = None
        free_device_memory()


def _show(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"

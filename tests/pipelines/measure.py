"""Serves a tiny pipeline as a worker does, and compares its images with those of the unmodified pipeline."""

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imagegen_protocol import GenerationRequest
from imagegen_worker.backends import Row, StartError, ignore_steps
from imagegen_worker.backends.diffusers import StepwiseDiffusers
from imagegen_worker.backends.diffusers.implied_arguments import implied_arguments
from imagegen_worker.backends.diffusers.sharing_report import MostRows
from imagegen_worker.config import LoadOptions
from imagegen_worker.engines.continuous.scheduler import BatchScheduler

STEPS = 4
ROWS = 4
"""Requests that run at the same time; each has a pipeline call of its own."""
PROMPTS = ("a cat", "two dogs that run on a wide beach, late in the evening", "a red house", "x" * 40)


@dataclass
class Tiny:
    """A tiny pipeline: `make` builds it; `side`: width and height that it generates quickly."""

    make: Callable[[], Any]
    side: int = 64
    needs: str | None = None
    """The package without which it can't be built."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Measured:
    """What was seen. Differences are of values from 0 (black) to 1 (white); None: not compared."""

    tasks: tuple[str, ...] = ()
    refused: str = ""
    alone: float | None = None
    together: float | None = None
    images_per_forward: float = 0.0
    most_per_forward: float = 0.0
    """Images per forward if all that wait shared each forward."""
    one_call: str = ""
    reasons: dict[str, str] = field(default_factory=dict)


def measure(tiny: Tiny) -> Measured:
    """Load a tiny pipeline from a folder and generate images alone and together."""
    with tempfile.TemporaryDirectory() as folder:
        pipeline = tiny.make()
        pipeline.save_pretrained(folder)
        defaults = {"width": tiny.side, "height": tiny.side, "num_inference_steps": STEPS}
        (Path(folder) / "imagegen.json").write_text(json.dumps(defaults))
        pipeline.set_progress_bar_config(disable=True)
        options = LoadOptions(device="cpu", threads=1)
        backend = StepwiseDiffusers(Path(folder), "tiny", options, max_batch_size=ROWS)
        try:
            backend.load()
        except StartError as error:
            return Measured(refused=str(error).replace(f"{folder}", "FOLDER"))
        with contextlib.closing(backend):
            return _compare(backend, pipeline)


def _compare(backend, pipeline):
    model = backend._loaded.model
    rows = [_row(model, number) for number in range(ROWS)]
    seen = Measured(tasks=tuple(model.tasks), one_call=_one_call(backend, rows))
    stock = [_stock(backend, pipeline, row) for row in rows]
    (alone,), _, _ = _run(backend, rows[:1])
    seen.alone = _distance(alone, stock[0])
    images, (seen.images_per_forward, seen.most_per_forward), seen.reasons = _run(backend, rows)
    seen.together = max(_distance(*pair) for pair in zip(images, stock, strict=True))
    return seen


def _row(model, number):
    """Return a request: the first has defaults, the others have other prompts, guidance and negative prompts."""
    task = next(iter(model.tasks))
    inputs = {"text-to-image": [], "image-to-image": ["image"], "inpainting": ["image", "mask_image"]}[task]
    fields = {"prompt": PROMPTS[number], "seed": number, "inputs": inputs}
    if number and model.guidance_scale is not None:
        fields["guidance_scale"] = model.guidance_scale + number / 2
    if number > 1 and model.takes_negative_prompt:
        fields["negative_prompt"] = PROMPTS[number - 1]
    request = model.resolve(GenerationRequest(**fields))
    size = (request.width, request.height)
    images = {}
    if inputs:
        images["image"] = Image.linear_gradient("L").rotate(90 * number).resize(size).convert("RGB")
    if "mask_image" in inputs:
        mask = Image.new("L", size, 0)
        mask.paste(255, (size[0] // 4, size[1] // 4, size[0] // 2, size[1] // 2))
        images["mask_image"] = mask
    return Row(replace(request, **images), number)


def _stock(backend, pipeline, row):
    """Return the image of the unmodified pipeline for the fields that the request names."""
    task, request = row.request.task, row.request
    kind = backend._loaded.task_pipelines.pipelines()[list(backend._loaded.model.tasks).index(task)]
    stock = pipeline if type(kind) is type(pipeline) else type(kind).from_pipe(pipeline)
    signature = backend._loaded.task_pipelines._by_task[task].signature
    names = signature.names
    fields = {"prompt": request.prompt, "num_inference_steps": request.num_inference_steps}
    fields |= {"width": request.width, "height": request.height}
    fields |= {"image": request.image, "mask_image": request.mask_image}
    if row.seed:
        fields |= {"guidance_scale": request.guidance_scale, "negative_prompt": request.negative_prompt}
    fields = {name: value for name, value in fields.items() if name in names and value is not None}
    fields |= implied_arguments(signature.defaults, replace(request, guidance_scale=fields.get("guidance_scale")))
    generator = torch.Generator("cpu").manual_seed(row.seed)
    output = stock(**fields, **_tensors(names), generator=generator)
    return next(iter(output.values()))[0]


def _tensors(names):
    return {"output_type": "pt"} if "output_type" in names else {}


def _run(backend, rows):
    """Return the images of rows that run at the same time, how many shared a forward, and why calls ran alone.

    How many: on average, and if all that waited had.
    """
    forwards = []
    scheduler = BatchScheduler(
        observe=lambda event: forwards.append(event),
        timer=backend.timer,
        memory_limits=backend.memory_limits,
        costs=MostRows(),
    )
    with backend.session():
        tasks = [scheduler.start(partial(_generate, backend, row)) for row in rows]
        while scheduler.step():
            continue
    for task in tasks:
        if task.error is not None:
            raise task.error
    denoised = [event for event in forwards if event.stage.is_denoiser]
    reasons = {event.stage.name: event.fallback for event in forwards if event.fallback}
    counts = Counter(task for event in denoised for task in event.tasks)
    forwards_of_images = sum(counts.values())
    shared = (forwards_of_images / max(len(denoised), 1), forwards_of_images / max([*counts.values(), 1]))
    return [task.result for task in tasks], shared, reasons


def _generate(backend, row):
    loaded = backend._loaded
    pipeline = loaded.task_pipelines.pipeline(row.request)
    arguments = loaded.arguments([row])
    arguments |= _tensors(loaded.task_pipelines._by_task[row.request.task].signature.names)
    return backend._batcher.generate_all(arguments, [row.seed], ignore_steps, pipeline=pipeline)[0]


def _one_call(backend, rows):
    keys = [backend.call_key(replace(row.request, guidance_scale=None, negative_prompt=None)) for row in rows[:2]]
    if keys[0] is None:
        return "no"
    return "any prompts" if keys[0][1] == () else "equal prompts"


def _distance(one, other):
    one, other = (_array(each) for each in (one, other))
    return float("inf") if one.shape != other.shape else float(np.abs(one - other).max())


def _array(image):
    if isinstance(image, Image.Image):
        return np.asarray(image, dtype=np.float64) / 255
    return np.asarray(image, dtype=np.float64)

"""The pipelines of one model: one for each kind of task and scheduler. All share the loaded models."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING
from PIL import Image

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, Row, completed
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.finished_images import finished_images, returns_tensors
from imagegen_worker.backends.diffusers.implied_arguments import implied_arguments
from imagegen_worker.backends.diffusers.outputs import images_of
from imagegen_worker.backends.diffusers.parameters import OWNED, Signature, read_signature
from imagegen_worker.backends.diffusers.unet_channels import UNetWithLatentChannels, has_unusual_channels
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.model import ResolvedRequest, Task

Pipeline = Any
"""A `diffusers.DiffusionPipeline`; the library has no annotations for most of its attributes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TaskPipeline:
    """The pipeline for one kind of task, and the signature of its call."""

    pipeline: Pipeline
    signature: Signature
    returns_tensors: bool
    """Whether calls return the images as tensors, which are converted on the device."""

    @property
    def capabilities(self) -> TaskCapabilities:
        """Parameters and defaults that requests may use."""
        return TaskCapabilities.of_call(self.signature.defaults, self.signature.extra, OWNED)


class TaskPipelines:
    """The pipelines for the tasks of a model, created from the one that was loaded."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._by_task = {
            task: TaskPipeline(each, read_signature(each), returns_tensors(each))
            for task, each in _task_pipelines(pipeline).items()
        }
        self._schedulers = _schedulers(pipeline)
        self._rescheduled: dict[tuple[Task, str], Pipeline] = {}

    @property
    def capabilities(self) -> dict[Task, TaskCapabilities]:
        """Capabilities of each kind of task; the first is that of the loaded pipeline."""
        return {task: one.capabilities for task, one in self._by_task.items()}

    @property
    def schedulers(self) -> tuple[str, ...]:
        """Names of the schedulers that requests may choose; the first is the model's own."""
        return tuple(self._schedulers)

    def check_task(self, row: Row) -> None:
        """Generate an image for a task, and remove the task if that fails: some pipelines check models only then.

        A lack of memory proves nothing about the task. Raises `DeviceLostError`.
        """
        task = row.request.task
        try:
            with translated_errors():
                generator = torch.Generator("cpu").manual_seed(row.seed)
                self.pipeline(row.request)(**self.arguments([row]), generator=generator)
        except DeviceLostError:
            raise
        except DeviceMemoryError as error:
            release_frames(error)
            free_device_memory()
            _log.warning("memory was too short to check the model for %s", task)
        except Exception as error:  # noqa: BLE001 - whatever it raises, the model lacks this task
            _log.warning("the model can't be used for %s: %s: %s", task, type(error).__name__, error)
            release_frames(error)
            del self._by_task[task]

    def update_models(self, pipeline: Pipeline) -> None:
        """Let all pipelines use the models of the loaded pipeline, after some of these were replaced."""
        for one in self._by_task.values():
            for name, part in pipeline.components.items():
                if one.pipeline is not pipeline and getattr(one.pipeline, name, None) is not None:
                    setattr(one.pipeline, name, part)
        inpainting = self._by_task.get("inpainting")
        if inpainting is not None and has_unusual_channels(pipeline):
            object.__setattr__(inpainting.pipeline, "unet", UNetWithLatentChannels(pipeline.unet))

    def pipelines(self) -> list[Pipeline]:
        """Return the pipelines, one for each kind of task."""
        return [one.pipeline for one in self._by_task.values()]

    def close(self) -> None:
        """Drop all references to the models."""
        self._by_task.clear()
        self._rescheduled.clear()

    def takes(self, request: ResolvedRequest, parameter: str) -> bool:
        """Return whether the pipeline of a request's task accepts a parameter."""
        return parameter in self._by_task[request.task].signature.names

    def pipeline(self, request: ResolvedRequest) -> Pipeline:
        """Return the pipeline for the task and scheduler of a request."""
        pipeline = self._by_task[request.task].pipeline
        if request.scheduler is None or request.scheduler == next(iter(self._schedulers), None):
            return pipeline
        key = (request.task, request.scheduler)
        if key not in self._rescheduled:
            self._rescheduled[key] = copy.copy(pipeline)
            self._rescheduled[key].scheduler = self._schedulers[request.scheduler]
        return self._rescheduled[key]

    def arguments(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the arguments of the call for rows with equal batch keys, without generators and callbacks.

        For several rows, arguments that may differ between rows are lists.
        """
        request = rows[0].request
        task = self._by_task[request.task]
        signature = task.signature
        requests = [row.request for row in rows]
        each: dict[str, list[Any]] = {
            "prompt": [request.prompt for request in requests],
            "negative_prompt": [request.negative_prompt for request in requests],
            "image": [list(request.images) or request.image for request in requests],
            "mask_image": [request.mask_image for request in requests],
            **{name: [request.extra[name]] * len(rows) for name in signature.texts if name in request.extra},
        }
        if request.image_is_hint:
            each["image"] = each["image"][:1]  # all rows of a batch have the same one
        own = {
            name: values if len(values) > 1 else values[0]
            for name, values in each.items()
            if values[0] is not None
        }
        given = {**own, **request.call_arguments()}
        if task.returns_tensors:
            given["output_type"] = "pt"
        given |= implied_arguments(signature.defaults, request)
        extra = {name: value for name, value in request.extra.items() if name not in each}
        return {name: value for name, value in given.items() if name in signature.names} | extra

    def generated_size(self, row: Row) -> tuple[int, int] | None:
        """Return the width and height of the image that a call generates; None if it fails.

        Raises `DeviceLostError`.
        """
        try:
            with translated_errors():
                generator = torch.Generator("cpu").manual_seed(row.seed)
                output = self.pipeline(row.request)(**self.arguments([row]), generator=generator)
                image = completed(finished_images(images_of(output))[0])
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - a size that the model does not support proves nothing
            _log.debug("no image of another size: %s: %s", type(error).__name__, error)
            release_frames(error)
            free_device_memory()
            return None
        return image.size if isinstance(image, Image.Image) else None


def _task_pipelines(pipeline: Pipeline) -> dict[Task, Pipeline]:
    takes = read_signature(pipeline).names
    if "mask_image" in takes:
        return {"inpainting": pipeline}  # its models may be trained for masks only
    found: dict[Task, Pipeline] = {}
    generates = "image" not in takes or type(pipeline) in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()
    if generates:
        found["text-to-image"] = pipeline
    if "image" in takes:
        found["image-to-image"] = pipeline
        if not generates and read_signature(pipeline).defaults["image"] is None:
            found["text-to-image"] = pipeline  # not the first task, and so checked by an image
    others: Mapping[Task, tuple[Any, frozenset[str]]] = {
        "image-to-image": (diffusers.AutoPipelineForImage2Image, frozenset({"image"})),
        "inpainting": (diffusers.AutoPipelineForInpainting, frozenset({"image", "mask_image"})),
    }
    for task, (kind, needed) in others.items():
        if task not in found and (made := _made_from(pipeline, kind)) is not None:
            names = read_signature(made).names
            if needed <= names and "control_image" not in names:
                found[task] = made
    return found


def _made_from(pipeline: Pipeline, kind: Any) -> Pipeline | None:
    """Return a pipeline of class `kind` with the same models; None if diffusers can't make one."""
    try:
        made = kind.from_pipe(pipeline)
    except Exception as error:  # noqa: BLE001 - whatever it raises, the model lacks this task
        _log.debug("no %s: %s: %s", kind.__name__, type(error).__name__, error)
        return None
    made.set_progress_bar_config(disable=True)
    return made


def _schedulers(pipeline: Pipeline) -> dict[str, Any]:
    """Return a scheduler of each class that the pipeline can use, by name; its own is the first."""
    own = getattr(pipeline, "scheduler", None)
    if not isinstance(own, diffusers.SchedulerMixin):
        return {}
    made = {type(own).__name__: own}
    if not isinstance(own, diffusers.ConfigMixin):
        return made
    for kind in sorted(getattr(own, "compatibles", ()), key=lambda kind: kind.__name__):
        try:
            made.setdefault(kind.__name__, kind.from_config(own.config))
        except Exception as error:  # noqa: BLE001 - a package is missing, or the prediction type is not supported
            _log.debug("no %s: %s: %s", kind.__name__, type(error).__name__, error)
    return made

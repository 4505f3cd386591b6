"""The pipelines of one model: one for each kind of task, with the scheduler asked for. All share the models."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers.pipelines.auto_pipeline import AUTO_TEXT2IMAGE_PIPELINES_MAPPING

from imagegen_worker.backends import DeviceLostError, Row
from imagegen_worker.backends.diffusers.channels import AsManyAsLatents, has_odd_channels
from imagegen_worker.backends.diffusers.parameters import OWNED, Signature, read_signature
from imagegen_worker.backends.diffusers.stages import translated_errors
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.model import ResolvedRequest, Task

Pipeline = Any
"""A `diffusers.DiffusionPipeline`: the library's own annotations leave out most of what it can do."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Variant:
    """The pipeline for one kind of task, and what its call takes."""

    pipeline: Pipeline
    signature: Signature

    @property
    def capabilities(self) -> TaskCapabilities:
        """What requests are told of it."""
        return TaskCapabilities.of_call(self.signature.defaults, self.signature.extra, OWNED)


class Variants:
    """The pipelines for a model that was loaded as one of them."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._by_task = {
            task: Variant(variant, read_signature(variant)) for task, variant in _find(pipeline).items()
        }
        self._schedulers = _schedulers(pipeline)
        self._rescheduled: dict[tuple[Task, str], Pipeline] = {}

    @property
    def capabilities(self) -> dict[Task, TaskCapabilities]:
        """What each kind of task takes; the first is the one that was loaded for."""
        return {task: variant.capabilities for task, variant in self._by_task.items()}

    @property
    def schedulers(self) -> tuple[str, ...]:
        """The schedulers that can be asked for; the first is the model's own."""
        return tuple(self._schedulers)

    def prove(self, row: Row) -> None:
        """Make an image, and give its kind of task up if that fails: some pipelines judge models only when called.

        Raises `DeviceLostError`.
        """
        task = row.request.task
        try:
            with translated_errors():
                generator = torch.Generator("cpu").manual_seed(row.seed)
                self.pipeline(row.request)(**self.arguments([row]), generator=generator)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the model is good for one thing less
            _log.warning("the model can't be used for %s: %s: %s", task, type(error).__name__, error)
            del self._by_task[task]

    def share(self, pipeline: Pipeline) -> None:
        """Take over the models of the loaded pipeline, some of which were replaced."""
        for variant in self._by_task.values():
            for name, part in pipeline.components.items():
                if variant.pipeline is not pipeline and getattr(variant.pipeline, name, None) is not None:
                    setattr(variant.pipeline, name, part)
        inpainting = self._by_task.get("inpainting")
        if inpainting is not None and has_odd_channels(pipeline):
            object.__setattr__(inpainting.pipeline, "unet", AsManyAsLatents(pipeline.unet))

    def pipelines(self) -> list[Pipeline]:
        """Return the pipelines, one for each kind of task."""
        return [variant.pipeline for variant in self._by_task.values()]

    def close(self) -> None:
        """Forget the models."""
        self._by_task.clear()
        self._rescheduled.clear()

    def takes(self, request: ResolvedRequest, parameter: str) -> bool:
        """Say whether the call that makes a request has a parameter."""
        return parameter in self._by_task[request.task].signature.names

    def pipeline(self, request: ResolvedRequest) -> Pipeline:
        """Return the pipeline that makes a request."""
        variant = self._by_task[request.task].pipeline
        if request.scheduler is None or request.scheduler == next(iter(self._schedulers), None):
            return variant
        key = (request.task, request.scheduler)
        if key not in self._rescheduled:
            self._rescheduled[key] = copy.copy(variant)
            self._rescheduled[key].scheduler = self._schedulers[request.scheduler]
        return self._rescheduled[key]

    def arguments(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return what the call for alike rows is given, all but generators and callbacks.

        One row is said as one says it to the pipeline; of several, what may differ is a list.
        """
        request = rows[0].request
        signature = self._by_task[request.task].signature
        requests = [row.request for row in rows]
        each: dict[str, list[Any]] = {
            "prompt": [request.prompt for request in requests],
            "negative_prompt": [request.negative_prompt for request in requests],
            "image": [request.image for request in requests],
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
        extra = {name: value for name, value in request.extra.items() if name not in each}
        return {name: value for name, value in given.items() if name in signature.names} | extra


def _find(pipeline: Pipeline) -> dict[Task, Pipeline]:
    takes = read_signature(pipeline).names
    if "mask_image" in takes:
        return {"inpainting": pipeline}  # its models may be made for masks, and for nothing else
    found: dict[Task, Pipeline] = {}
    if "image" not in takes or type(pipeline) in AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values():
        found["text-to-image"] = pipeline
    if "image" in takes:
        found["image-to-image"] = pipeline
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
    """Return the same models as another pipeline; None if there is no such."""
    try:
        made = kind.from_pipe(pipeline)
    except Exception as error:  # noqa: BLE001 - whatever is missing, the model is good for one thing less
        _log.debug("no %s: %s: %s", kind.__name__, type(error).__name__, error)
        return None
    made.set_progress_bar_config(disable=True)
    return made


def _schedulers(pipeline: Pipeline) -> dict[str, Any]:
    """Return a scheduler of each class that can stand in for the pipeline's own, which comes first."""
    own = getattr(pipeline, "scheduler", None)
    if not isinstance(own, diffusers.SchedulerMixin):
        return {}
    made = {type(own).__name__: own}
    if not isinstance(own, diffusers.ConfigMixin):
        return made
    for kind in sorted(getattr(own, "compatibles", ()), key=lambda kind: kind.__name__):
        try:
            made.setdefault(kind.__name__, kind.from_config(own.config))
        except Exception as error:  # noqa: BLE001 - it may need a package, or can't do what the model predicts
            _log.debug("no %s: %s: %s", kind.__name__, type(error).__name__, error)
    return made

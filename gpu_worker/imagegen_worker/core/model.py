"""What a model accepts, and requests with its defaults filled in."""

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.accepted import AcceptedParameter
from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.declaration import TaskName
from imagegen_protocol.limits import MAX_CHOICES, MAX_SIDE_PIXELS
from imagegen_protocol.messages import Parameter
from imagegen_protocol.request import (
    BODY_PARAMETERS,
    DEFAULT_OUTPUT_FORMAT,
    DEFAULT_QUALITY,
    OutputFormat,
    task_of,
)
from imagegen_worker.core.capabilities import TaskCapabilities

if TYPE_CHECKING:
    from PIL.Image import Image

Task = TaskName


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """A request with nothing left open. One image for each seed; sizes in pixels.

    `guidance_scale`, `strength` and `scheduler` are None for a model that has none, `negative_prompt` is None if
    none was given, `quality` is None for a format that has none. `image` (RGB) and `mask_image` (L) have the size
    of what is made.
    """

    model: str
    prompt: str
    negative_prompt: str | None
    seeds: tuple[int, ...]
    num_inference_steps: int
    guidance_scale: float | None
    width: int
    height: int
    loras: tuple[tuple[str, float], ...] = ()
    """Name and scale of each, in the order of the names."""
    task: Task = "text-to-image"
    image: "Image | None" = field(default=None, repr=False)
    mask_image: "Image | None" = field(default=None, repr=False)
    strength: float | None = None
    scheduler: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The values of `CALL_PARAMETERS`, as far as there are any."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    output_format: OutputFormat = DEFAULT_OUTPUT_FORMAT
    quality: int | None = None

    @property
    def image_is_hint(self) -> bool:
        """Whether there is an image that is a hint for the model, not the start of the denoising."""
        return self.image is not None and self.strength is None

    @property
    def batch_key(self) -> Hashable:
        """Requests with equal keys can share one pipeline call."""
        return (
            self.model,
            self.task,
            self.width,
            self.height,
            self.num_inference_steps,
            self.guidance_scale,
            # A pipeline may treat "no negative prompt" otherwise than an empty one (SDXL does).
            self.negative_prompt is None,
            self.loras,
            self.strength,
            self.scheduler,
            # As text: 1, 1.0 and true are equal in Python, and not to a pipeline.
            json.dumps([dict(self.arguments), dict(self.extra)], sort_keys=True),
            # In one call, several hints would be for one and the same image: each has a call of its own.
            id(self.image) if self.image_is_hint else None,
        )

    def call_arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that requests of one batch have in common, `extra` aside."""
        named = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "width": self.width,
            "height": self.height,
            "strength": self.strength,
            **self.arguments,
        }
        return {name: value for name, value in named.items() if value is not None}

    def parameters(self) -> dict[str, Parameter]:
        """Return what RESULT reports; without the prompts, which could outgrow a header frame."""
        found: dict[str, Parameter] = {"task": self.task}
        for name, parameter in BODY_PARAMETERS.items():
            if parameter.info.in_result:
                value = self._value(name)
                # A model without guidance is reported as such; all else that does not apply is left out.
                if value is not None or name == "guidance_scale":
                    found[name] = value
        return found

    def _value(self, name: str) -> Any:
        """Return the value of a declared parameter as RESULT has it; None if there is none."""
        match name:
            case "seed":
                return self.seeds[0]
            case "num_images":
                return len(self.seeds)
            case "loras":
                return [{"name": name, "scale": scale} for name, scale in self.loras] or None
            case "extra":
                return dict(self.extra) or None
        return self.arguments.get(name) if name in CALL_PARAMETERS else getattr(self, name)

    def parameters_of(self, seed: int) -> dict[str, Parameter]:
        """Return what is written into the image of one seed."""
        prompts: dict[str, Parameter] = {"prompt": self.prompt}
        if self.negative_prompt is not None:
            prompts["negative_prompt"] = self.negative_prompt
        return {"model": self.model, **prompts, **self.parameters(), "seed": seed, "num_images": 1}


CALL_PARAMETERS: frozenset[str] = frozenset(
    name
    for name, parameter in BODY_PARAMETERS.items()
    if parameter.info.per_model
    and parameter.kind in ("integer", "number", "boolean", "string")
    and name not in ResolvedRequest.__dataclass_fields__
)
"""Declared parameters that go to the pipeline's call as they are, where the call has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's name, defaults and limits. Sizes in pixels; `guidance_scale` None: the model has none.

    `schedulers` are the classes that it can run with, the first of which it does run with; none: it has no such.
    """

    name: str
    num_inference_steps: int
    guidance_scale: float | None
    width: int
    height: int
    size_multiple: int = 1
    max_side: int = MAX_SIDE_PIXELS
    takes_negative_prompt: bool = True
    takes_loras: bool = False
    loras: tuple[str, ...] = ()
    """Those that were there when it was loaded."""
    schedulers: tuple[str, ...] = ()
    tasks: Mapping[Task, TaskCapabilities] = field(default_factory=lambda: {"text-to-image": TaskCapabilities()})

    def capabilities(self) -> ModelCapabilities:
        """Return what brokers are told of it."""
        return ModelCapabilities(
            width=self.width,
            height=self.height,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            size_multiple=self.size_multiple,
            max_side=self.max_side,
            negative_prompt=self.takes_negative_prompt,
            tasks={task: capabilities.strength for task, capabilities in self.tasks.items()},
            schedulers=list(self.schedulers[:MAX_CHOICES]),
            loras=list(self.loras[:MAX_CHOICES]) if self.takes_loras else None,
            parameters=self._accepted(),
        )

    def _accepted(self) -> dict[str, AcceptedParameter]:
        """Return what the call of any task accepts of `CALL_PARAMETERS`, with the first task's default."""
        found: dict[str, AcceptedParameter] = {}
        for task in self.tasks.values():
            for name in sorted(CALL_PARAMETERS & task.defaults.keys()):
                found.setdefault(name, AcceptedParameter(default=task.defaults[name]))
        return found

    def least_steps(self, task: Task) -> int:
        """Return the smallest number of denoising steps with which a task has one step to make by default."""
        strength = self.tasks[task].strength
        if strength is None:
            return 1
        least = math.ceil(1 / strength)
        return least if int(least * strength) >= 1 else least + 1

    def check(self, request: GenerationRequest) -> None:
        """Raise `InvalidRequestError` for what this model can't make, as far as that shows without the images."""
        task = task_of(request)
        if task not in self.tasks:
            given = f"the inputs {', '.join(request.inputs)}" if request.inputs else "no image"
            raise InvalidRequestError(
                f"inputs: the model {self.name} does {' and '.join(self.tasks)}, not {task}: got {given}"
            )
        if request.negative_prompt and not self.takes_negative_prompt:
            raise InvalidRequestError(f"negative_prompt: the model {self.name} takes none")
        if request.guidance_scale is not None and self.guidance_scale is None:
            raise InvalidRequestError(f"guidance_scale: the model {self.name} takes none")
        if request.loras and not self.takes_loras:
            raise InvalidRequestError(f"loras: the worker has none for the model {self.name}")
        if request.scheduler is not None and request.scheduler not in self.schedulers:
            able = ", ".join(self.schedulers) or "none but its own way"
            raise InvalidRequestError(
                f"scheduler: the model {self.name} can't run with {request.scheduler!r}; it can with: {able}"
            )
        for name in sorted(CALL_PARAMETERS - self.tasks[task].defaults.keys()):
            if getattr(request, name) is not None:
                raise InvalidRequestError(f"{name}: the model {self.name} takes none for {task}")
        self._check_strength(request, self.tasks[task].strength)
        self.tasks[task].read_extra(self.name, request.extra or {})
        for name, side in (("width", request.width), ("height", request.height)):
            if side is not None:
                self._check_side(name, side)

    def resolve(self, request: GenerationRequest, image_size: tuple[int, int] | None = None) -> ResolvedRequest:
        """Fill in the defaults. Raises `InvalidRequestError` for what this model can't make.

        `image_size`: width and height of the request's image, in pixels. The images themselves are left out.
        """
        self.check(request)
        task = task_of(request)
        width, height = request.width or self.width, request.height or self.height
        if image_size is not None:
            width = request.width or self._side_of_image("width", image_size[0])
            height = request.height or self._side_of_image("height", image_size[1])
        strength = self.tasks[task].strength
        format_ = request.output_format or DEFAULT_OUTPUT_FORMAT
        return ResolvedRequest(
            model=self.name,
            prompt=request.prompt,
            negative_prompt=request.negative_prompt if self.takes_negative_prompt else None,
            seeds=tuple(request.seeds()),
            num_inference_steps=request.num_inference_steps or self.num_inference_steps,
            guidance_scale=self.guidance_scale if request.guidance_scale is None else request.guidance_scale,
            width=width,
            height=height,
            loras=tuple(sorted((lora.name, lora.scale) for lora in request.loras or ())),
            task=task,
            strength=strength if request.strength is None else request.strength,
            scheduler=request.scheduler or next(iter(self.schedulers), None),
            arguments=self._arguments(request, self.tasks[task].defaults),
            extra=self.tasks[task].read_extra(self.name, request.extra or {}),
            output_format=format_,
            quality=None if format_ == "png" else request.quality or DEFAULT_QUALITY,
        )

    def _arguments(self, request: GenerationRequest, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of `CALL_PARAMETERS`: the request's, or else the defaults, where there are any."""
        given = {name: getattr(request, name) for name in CALL_PARAMETERS & defaults.keys()}
        found = {name: defaults[name] if value is None else value for name, value in sorted(given.items())}
        return {name: value for name, value in found.items() if value is not None}

    def _check_strength(self, request: GenerationRequest, default: float | None) -> None:
        if request.strength is not None and default is None:
            raise InvalidRequestError(f"strength: the model {self.name} takes none")
        strength = request.strength or default
        steps = request.num_inference_steps or self.num_inference_steps
        if strength is not None and int(steps * strength) < 1:
            raise InvalidRequestError(
                f"strength: {strength:g} of {steps} steps leaves none to make; at least"
                f" {math.ceil(10_000 / steps) / 10_000:g} is needed, or {math.ceil(1 / strength)} steps"
            )

    def _side_of_image(self, name: str, own: int) -> int:
        """Return the side that is made from an image's own: whole multiples, at least one."""
        if own - own % self.size_multiple > self.max_side:
            raise InvalidRequestError(
                f"{name}: the model {self.name} makes at most {self.max_side} pixels, got {own}, the image's own:"
                f" say which width and height are wanted"
            )
        return max(own - own % self.size_multiple, self.size_multiple)

    def _check_side(self, name: str, asked: int) -> None:
        if asked > self.max_side:
            raise InvalidRequestError(
                f"{name}: the model {self.name} makes at most {self.max_side} pixels, got {asked}"
            )
        over = asked % self.size_multiple
        if over:
            around = [asked - over, asked - over + self.size_multiple]
            right = " or ".join(str(side) for side in around if 8 <= side <= self.max_side)
            raise InvalidRequestError(
                f"{name}: the model {self.name} makes multiples of {self.size_multiple} pixels,"
                f" got {asked}; {right} would be right"
            )

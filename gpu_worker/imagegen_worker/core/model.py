"""Models with their capabilities, and requests with a model's defaults filled in."""

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.capabilities import AcceptedParameter, ModelCapabilities
from imagegen_protocol.costs import RequestShape, check_stated
from imagegen_protocol.declaration import TaskName
from imagegen_protocol.fields import ParameterValue
from imagegen_protocol.limits import MAX_CHOICES, MAX_REASON_LENGTH, MAX_SIDE_PIXELS
from imagegen_protocol.request import (
    BODY_PARAMETERS,
    DEFAULT_OUTPUT_FORMAT,
    DEFAULT_QUALITY,
    OutputFormat,
    task_of,
)
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.output_size import OutputSizes, scaling_warnings

if TYPE_CHECKING:
    from PIL.Image import Image

Task = TaskName
_MAX_AREA = 4
"""Maximum area of an output whose size follows from the input image, in areas of the model's default size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedRequest:
    """A request with all defaults filled in. One image for each seed; sizes in pixels.

    `guidance_scale`, `strength` and `scheduler` are None for a model that has none, `negative_prompt` is None if
    the request has none, `quality` is None for a format that has none. `image` (RGB) and `mask_image` (L) have
    the size of the output; the reference `images` (RGB) keep their aspect ratio.
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
    """Name and scale of each LoRA, ordered by name."""
    task: Task = "text-to-image"
    image: "Image | None" = field(default=None, repr=False)
    mask_image: "Image | None" = field(default=None, repr=False)
    images: tuple["Image", ...] = field(default=(), repr=False)
    """Reference images."""
    given_sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of each reference image in the request."""
    strength: float | None = None
    scheduler: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """The values of those `CALL_PARAMETERS` that have one."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    output_format: OutputFormat = DEFAULT_OUTPUT_FORMAT
    quality: int | None = None
    warnings: tuple[str, ...] = ()
    """What the client should know about the input images, for RESULT."""

    @property
    def image_is_hint(self) -> bool:
        """Whether the input images condition the model instead of starting the denoising."""
        return bool(self.images) or (self.image is not None and self.strength is None)

    @property
    def megapixels(self) -> float:
        """Millions of pixels of each image."""
        return self.width * self.height / 1e6

    @property
    def executed_steps(self) -> int:
        """Number of denoising steps after `strength`."""
        return max(1, int(self.num_inference_steps * (self.strength or 1.0)))

    def check_shape(self, shape: RequestShape) -> None:
        """Raise `InvalidRequestError` if the shape in the header states another size or number of steps."""
        check_stated("width", shape.width, self.width, None)
        check_stated("height", shape.height, self.height, None)
        # A client that does not know the model's default strength states the steps of the body.
        steps = (self.executed_steps, self.num_inference_steps, None)
        check_stated("num_inference_steps", shape.num_inference_steps, *steps)

    @property
    def batch_key(self) -> Hashable:
        """Key of the requests that can share one pipeline call."""
        return (
            self.model,
            self.task,
            self.width,
            self.height,
            self.num_inference_steps,
            self.guidance_scale,
            # A pipeline may treat a missing negative prompt and an empty one differently (SDXL does).
            self.negative_prompt is None,
            self.loras,
            self.strength,
            self.scheduler,
            # As text: 1, 1.0 and true are equal in Python but not for a pipeline.
            json.dumps([dict(self.arguments), dict(self.extra)], sort_keys=True),
            # A call would apply several conditioning images to each of its images: each gets its own call.
            (id(self.image), *map(id, self.images)) if self.image_is_hint else None,
        )

    def call_arguments(self) -> dict[str, Any]:
        """Return the arguments of the pipeline's call that the requests of a batch share, except `extra`."""
        named = {
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "width": self.width,
            "height": self.height,
            "strength": self.strength,
            **self.arguments,
        }
        return {name: value for name, value in named.items() if value is not None}

    def parameters(self) -> dict[str, ParameterValue]:
        """Return the parameters for RESULT, without prompts, which could exceed the size of a header."""
        found: dict[str, ParameterValue] = {"task": self.task}
        for name, parameter in BODY_PARAMETERS.items():
            if parameter.info.in_result:
                value = self._value(name)
                # A model without guidance reports None; other parameters that do not apply are omitted.
                if value is not None or name == "guidance_scale":
                    found[name] = value
        return found

    def _value(self, name: str) -> Any:
        """Return the value of a declared parameter in the form of RESULT; None without a value."""
        match name:
            case "seed":
                return self.seeds[0]
            case "num_images":
                return len(self.seeds)
            case "loras":
                return [{"name": name, "scale": scale} for name, scale in self.loras] or None
            case "extra":
                return dict(self.extra) or None
            case "images":
                return self._reference_sizes()
        return self.arguments.get(name) if name in CALL_PARAMETERS else getattr(self, name)

    def _reference_sizes(self) -> list[dict[str, int]] | None:
        """Return the size of each reference image in the request, and the one that the model received."""
        sizes = zip(self.given_sizes, self.images, strict=True)
        return [
            {"width": given[0], "height": given[1], "used_width": used.width, "used_height": used.height}
            for given, used in sizes
        ] or None

    def parameters_of(self, seed: int) -> dict[str, ParameterValue]:
        """Return the parameters to embed in the image of one seed."""
        prompts: dict[str, ParameterValue] = {"prompt": self.prompt}
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
"""Declared parameters that are passed unchanged to pipeline calls that accept them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model's name, defaults and limits. Sizes in pixels.

    `guidance_scale` None: the model has none, or with `takes_guidance` it chooses the guidance itself.

    `schedulers`: names of the scheduler classes that it supports, the default first; empty if it has no scheduler.
    """

    name: str
    num_inference_steps: int
    guidance_scale: float | None
    takes_guidance: bool | None = None
    """Whether requests may set a guidance scale; None: if it has a default."""
    width: int
    height: int
    size_multiple: int = 1
    max_side: int = MAX_SIDE_PIXELS
    sizes: tuple[tuple[int, int], ...] = ()
    """Width and height of the only sizes that the model generates; empty: any within the limits."""
    takes_negative_prompt: bool = True
    takes_loras: bool = False
    loras: tuple[str, ...] = ()
    """LoRAs that were available when the model was loaded."""
    schedulers: tuple[str, ...] = ()
    max_reference_images: int = 0
    """Maximum reference images of a request; 0: the model accepts none."""
    unshared: str = ""
    """Why requests do not share all forwards; empty if they do, or if it is unknown."""
    tasks: Mapping[Task, TaskCapabilities] = field(default_factory=lambda: {"text-to-image": TaskCapabilities()})

    @property
    def _sizes(self) -> OutputSizes:
        return OutputSizes(
            model=self.name,
            multiple=self.size_multiple,
            max_side=self.max_side,
            max_pixels=_MAX_AREA * self.width * self.height,
            sizes=self.sizes,
        )

    @property
    def _takes_guidance(self) -> bool:
        return self.guidance_scale is not None if self.takes_guidance is None else self.takes_guidance

    def capabilities(self) -> ModelCapabilities:
        """Return the capabilities that READY reports."""
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
            unshared=self.unshared[:MAX_REASON_LENGTH] or None,
        )

    def _accepted(self) -> dict[str, AcceptedParameter]:
        """Return the `CALL_PARAMETERS` that any task accepts, with the default of the first such task.

        A guidance scale without a default is among them.
        """
        found: dict[str, AcceptedParameter] = {}
        for task in self.tasks.values():
            for name in sorted(CALL_PARAMETERS & task.defaults.keys()):
                found.setdefault(name, AcceptedParameter(default=task.defaults[name]))
        if self._takes_guidance and self.guidance_scale is None:
            found["guidance_scale"] = AcceptedParameter()
        if self.max_reference_images:
            found["images"] = AcceptedParameter(maximum=self.max_reference_images)
        return found

    def least_steps(self, task: Task) -> int:
        """Return the smallest number of steps of which a task runs at least one at its default strength."""
        strength = self.tasks[task].strength
        if strength is None:
            return 1
        least = math.ceil(1 / strength)
        return least if int(least * strength) >= 1 else least + 1

    def check(self, request: GenerationRequest) -> None:
        """Raise `InvalidRequestError` for what this model does not support; input images are not checked."""
        task = task_of(request)
        if task not in self.tasks:
            inputs = f"the inputs {', '.join(request.inputs)}" if request.inputs else "no image"
            raise InvalidRequestError(
                f"inputs: the model {self.name} supports {' and '.join(self.tasks)}, not {task}: got {inputs}"
            )
        if request.negative_prompt and not self.takes_negative_prompt:
            raise InvalidRequestError(f"negative_prompt: the model {self.name} accepts none")
        if request.guidance_scale is not None and not self._takes_guidance:
            raise InvalidRequestError(f"guidance_scale: the model {self.name} accepts none")
        if request.loras and not self.takes_loras:
            raise InvalidRequestError(f"loras: the worker has none for the model {self.name}")
        if request.scheduler is not None and request.scheduler not in self.schedulers:
            supported = ", ".join(self.schedulers) or "none"
            raise InvalidRequestError(
                f"scheduler: the model {self.name} does not support {request.scheduler!r}; supported: {supported}"
            )
        for name in sorted(CALL_PARAMETERS - self.tasks[task].defaults.keys()):
            if getattr(request, name) is not None:
                raise InvalidRequestError(f"{name}: the model {self.name} accepts none for {task}")
        self._check_references(len(request.images or ()))
        self._check_strength(request, self.tasks[task].strength)
        self.tasks[task].convert_extra(self.name, request.extra or {})
        for name, side in (("width", request.width), ("height", request.height)):
            if side is not None:
                self._check_side(name, side)

    def resolve(self, request: GenerationRequest, image_size: tuple[int, int] | None = None) -> ResolvedRequest:
        """Return the request with all defaults. Raises `InvalidRequestError` if this model does not support it.

        `image_size`: width and height of the input image, in pixels. The result has no input images.
        """
        self.check(request)
        task = task_of(request)
        width, height = request.width or self.width, request.height or self.height
        if image_size is not None:
            width, height = self._sizes.for_image(image_size, request.width, request.height)
        self._check_size(width, height)
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
            extra=self.tasks[task].convert_extra(self.name, request.extra or {}),
            output_format=format_,
            quality=None if format_ == "png" else request.quality or DEFAULT_QUALITY,
            warnings=() if image_size is None else scaling_warnings(image_size, (width, height)),
        )

    def _arguments(self, request: GenerationRequest, defaults: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of `CALL_PARAMETERS` from the request, or the defaults."""
        given = {name: getattr(request, name) for name in CALL_PARAMETERS & defaults.keys()}
        found = {name: defaults[name] if value is None else value for name, value in sorted(given.items())}
        return {name: value for name, value in found.items() if value is not None}

    def _check_references(self, count: int) -> None:
        if count > self.max_reference_images:
            limit = self.max_reference_images
            accepted = f"at most {limit} reference images" if limit else "one image, as `image`, and no references"
            raise InvalidRequestError(f"images: the model {self.name} accepts {accepted}; got {count}")

    def _check_strength(self, request: GenerationRequest, default: float | None) -> None:
        if request.strength is not None and default is None:
            raise InvalidRequestError(f"strength: the model {self.name} accepts none")
        strength = request.strength or default
        steps = request.num_inference_steps or self.num_inference_steps
        if strength is not None and int(steps * strength) < 1:
            raise InvalidRequestError(
                f"strength: {strength:g} of {steps} steps leaves no step; at least"
                f" {math.ceil(10_000 / steps) / 10_000:g} is needed, or {math.ceil(1 / strength)} steps"
            )

    def _check_size(self, width: int, height: int) -> None:
        if self.sizes and (width, height) not in self.sizes:
            sizes = ", ".join(f"{wide} x {high}" for wide, high in self.sizes)
            raise InvalidRequestError(
                f"width, height: the model {self.name} generates only {sizes} pixels, got {width} x {height}"
            )

    def _check_side(self, name: str, side: int) -> None:
        if side > self.max_side:
            raise InvalidRequestError(
                f"{name}: the model {self.name} generates at most {self.max_side} pixels, got {side}"
            )
        lower = side - side % self.size_multiple
        if lower != side:
            allowed = [near for near in (lower, lower + self.size_multiple) if 8 <= near <= self.max_side]
            raise InvalidRequestError(
                f"{name}: the model {self.name} generates multiples of {self.size_multiple} pixels, got {side};"
                f" use {' or '.join(map(str, allowed))}"
            )

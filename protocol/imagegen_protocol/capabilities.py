"""Capabilities of models: what workers report in READY, and the broker in its statistics."""

import enum
from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from imagegen_protocol.declaration import Parameter, TaskName
from imagegen_protocol.fields import Finite, Integer, Name, Scalar
from imagegen_protocol.limits import (
    MAX_CAPABILITIES_BYTES,
    MAX_CHOICES,
    MAX_GUIDANCE_SCALE,
    MAX_INLINE_BYTES,
    MAX_MODELS,
    MAX_NAME_LENGTH,
    MAX_PARAMETERS,
    MAX_REASON_LENGTH,
    MAX_SIDE_PIXELS,
    MAX_STEPS,
)

Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]
Scale = Annotated[float, Meta(ge=0, le=MAX_GUIDANCE_SCALE)]
Choices = Annotated[list[Name], Meta(max_length=MAX_CHOICES)]


class Merge(enum.Enum):
    """How a field is merged if the workers of a model report different values."""

    FIRST = "the first worker's value"
    FIRST_SET = "the first value that is not None"
    LOWEST = "the lowest value; None (no limit) if a worker has it"
    HIGHEST = "the highest value; None (no limit) if a worker has it"
    ANY = "true if it is true for a worker"
    UNION = "all items of the lists; None if no worker has a list"
    EACH = "a map with the keys of all workers; structs are merged by their fields, other values by FIRST_SET"


class AcceptedParameter(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model accepts for one parameter, within the declared range; None stands for the declared limit."""

    default: Annotated[Scalar, Merge.FIRST_SET] = None
    """Default value of the model; None if it has none."""
    minimum: Annotated[Integer | Finite | None, Merge.LOWEST] = None
    """Lowest accepted number."""
    maximum: Annotated[Integer | Finite | None, Merge.HIGHEST] = None
    """Highest accepted number."""
    multiple_of: Annotated[Side | None, Merge.LOWEST] = None
    """Divisor of every accepted number."""
    choices: Annotated[Choices | None, Merge.UNION] = None
    """Accepted values of a str."""


class ModelCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults and limits of one loaded model. Sizes are in pixels."""

    width: Annotated[Side, Merge.FIRST]
    """Default width."""
    height: Annotated[Side, Merge.FIRST]
    """Default height."""
    num_inference_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS), Merge.FIRST]
    """Default number of denoising steps."""
    guidance_scale: Annotated[Scale | None, Merge.FIRST_SET] = None
    """Default guidance scale; None if the model accepts none, or chooses it: then `parameters` has it."""
    size_multiple: Annotated[Side, Merge.LOWEST] = 1
    """Divisor of every accepted width and height."""
    max_side: Annotated[Side, Merge.HIGHEST] = MAX_SIDE_PIXELS
    """Maximum width and height."""
    negative_prompt: Annotated[bool, Merge.ANY] = False
    """Whether the model accepts a negative prompt."""
    tasks: Annotated[dict[TaskName, Annotated[float, Meta(ge=0, le=1)] | None], Merge.EACH]
    """Default strength by task; None for a task without strength."""
    schedulers: Annotated[Choices, Merge.UNION] = []
    """Names of the accepted schedulers; the model's own is the first."""
    loras: Annotated[Choices | None, Merge.UNION] = None
    """Names of the LoRAs that the worker had when it loaded the model; None if the model accepts none."""
    parameters: Annotated[dict[Name, AcceptedParameter], Meta(max_length=MAX_PARAMETERS), Merge.EACH] = {}
    """Other accepted parameters by name."""
    unshared: Annotated[Annotated[str, Meta(max_length=MAX_REASON_LENGTH)] | None, Merge.FIRST_SET] = None
    """Why requests do not share all forwards of a batch; None if they do, or if it is unknown."""


CapabilitiesByModel = dict[Name, ModelCapabilities]
"""Capabilities by the name of the model."""


def accepted_parameter(model: ModelCapabilities, parameter: Parameter) -> AcceptedParameter | None:
    """Return what a model accepts for a parameter; None if it does not accept it.

    The first parameters of the protocol are fields of `ModelCapabilities`; later ones are in its `parameters`.
    """
    if not parameter.info.per_model:
        return AcceptedParameter(default=parameter.default)
    if parameter.kind == "image":
        return AcceptedParameter() if parameter.info.tasks[0] in model.tasks else None
    match parameter.name:
        case "width" | "height" as side:
            default = model.width if side == "width" else model.height
            return AcceptedParameter(default=default, maximum=model.max_side, multiple_of=model.size_multiple)
        case "num_inference_steps":
            return AcceptedParameter(default=model.num_inference_steps)
        case "guidance_scale":
            return _with_default(model.guidance_scale) or model.parameters.get("guidance_scale")
        case "strength":
            defaults = (model.tasks.get(task) for task in parameter.info.tasks)
            return _with_default(next((each for each in defaults if each is not None), None))
        case "negative_prompt":
            return AcceptedParameter() if model.negative_prompt else None
        case "scheduler":
            choices = model.schedulers
            return AcceptedParameter(default=choices[0], choices=choices) if choices else None
        case "loras":
            return None if model.loras is None else AcceptedParameter(choices=model.loras)
    return model.parameters.get(parameter.name)


def _with_default(default: float | None) -> AcceptedParameter | None:
    return None if default is None else AcceptedParameter(default=default)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(dict[Name, msgspec.Raw])
_capabilities = msgspec.msgpack.Decoder(ModelCapabilities)
_NAME_BYTES = 4 * MAX_NAME_LENGTH + 16
"""Maximum size of a model's name in UTF-8, with what msgpack adds to it and to the map."""


def encode_capabilities(models: Mapping[str, ModelCapabilities]) -> list[bytes]:
    """Return the capabilities frames of one or several READYs, each within the size limit.

    If those of one model alone exceed it, its lists of schedulers and LoRAs are truncated; if that is not enough,
    the model is omitted.
    """
    limit = MAX_CAPABILITIES_BYTES - _NAME_BYTES
    parts: list[dict[str, msgspec.Raw]] = [{}]
    left = MAX_CAPABILITIES_BYTES - 8
    for name, capabilities in models.items():
        body = _encode_within(capabilities, limit)
        if len(body) > limit:
            continue
        size = len(body) + len(name.encode()) + 8
        if size > left:
            parts.append({})
            left = MAX_CAPABILITIES_BYTES - 8
        parts[-1][name] = msgspec.Raw(body)
        left -= size
    return [_encoder.encode(part) for part in parts]


def _encode_within(capabilities: ModelCapabilities, limit: int) -> bytes:
    body = _encoder.encode(capabilities)
    while len(body) > limit and (capabilities.loras or capabilities.schedulers):
        loras, schedulers = capabilities.loras, capabilities.schedulers
        capabilities = msgspec.structs.replace(
            capabilities, loras=loras and loras[: len(loras) // 2], schedulers=schedulers[: len(schedulers) // 2]
        )
        body = _encoder.encode(capabilities)
    return body


def decode_capabilities(frame: bytes | memoryview) -> CapabilitiesByModel:
    """Return the capabilities in a frame of READY, without models whose entries are invalid."""
    if len(frame) > MAX_INLINE_BYTES:
        return {}
    try:
        encoded = _decoder.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    models = {}
    for name, body in list(encoded.items())[:MAX_MODELS]:
        try:
            models[name] = _capabilities.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
    return models

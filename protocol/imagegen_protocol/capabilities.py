"""Capabilities of models, which workers report behind READY and the broker in its statistics."""

from collections.abc import Mapping
from typing import Annotated

import msgspec
from msgspec import Meta

from imagegen_protocol.accepted import AcceptedParameter, Choices, Merge
from imagegen_protocol.declaration import Parameter, TaskName
from imagegen_protocol.limits import (
    MAX_BODY_BYTES,
    MAX_GUIDANCE_SCALE,
    MAX_MODELS,
    MAX_PARAMETERS,
    MAX_SIDE_PIXELS,
    MAX_STEPS,
)
from imagegen_protocol.messages import Name

Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]
Scale = Annotated[float, Meta(ge=0, le=MAX_GUIDANCE_SCALE)]


class ModelCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults and bounds of one model, as it was loaded. Sizes are in pixels."""

    width: Annotated[Side, Merge.FIRST]
    """The default, like every field that is no bound."""
    height: Annotated[Side, Merge.FIRST]
    num_inference_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS), Merge.FIRST]
    guidance_scale: Annotated[Scale | None, Merge.FIRST_SET] = None
    """None: not accepted."""
    size_multiple: Annotated[Side, Merge.LOWEST] = 1
    """Width and height are multiples of it."""
    max_side: Annotated[Side, Merge.HIGHEST] = MAX_SIDE_PIXELS
    negative_prompt: Annotated[bool, Merge.ANY] = False
    """Whether it is accepted."""
    tasks: Annotated[dict[TaskName, Annotated[float, Meta(ge=0, le=1)] | None], Merge.EACH]
    """The tasks of the model, and the default strength of each; None: the task accepts none."""
    schedulers: Annotated[Choices, Merge.UNION] = []
    """The schedulers that the model can run with, its own first."""
    loras: Annotated[Choices | None, Merge.UNION] = None
    """The LoRAs that the worker had when it loaded the model; None: not accepted."""
    parameters: Annotated[dict[Name, AcceptedParameter], Meta(max_length=MAX_PARAMETERS), Merge.EACH] = {}
    """The other parameters that the model accepts."""


CapabilitiesByModel = dict[Name, ModelCapabilities]
"""Models by name."""


def accepted(model: ModelCapabilities, parameter: Parameter) -> AcceptedParameter | None:
    """Return what a model accepts for a parameter; None if it does not accept it.

    Parameters that are older than `ModelCapabilities.parameters` have fields of their own.
    """
    if not parameter.info.per_model:
        return AcceptedParameter(default=parameter.default)
    if parameter.kind in ("image", "images"):
        return AcceptedParameter() if parameter.info.tasks[0] in model.tasks else None
    match parameter.name:
        case "width" | "height" as side:
            default = model.width if side == "width" else model.height
            return AcceptedParameter(default=default, maximum=model.max_side, multiple_of=model.size_multiple)
        case "num_inference_steps":
            return AcceptedParameter(default=model.num_inference_steps)
        case "guidance_scale":
            return _with_default(model.guidance_scale)
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


def encode_capabilities(described: Mapping[str, ModelCapabilities]) -> bytes:
    """Return the frame behind READY, with as many of the models, in order, as fit into its size limit."""
    told: dict[str, msgspec.Raw] = {}
    left = MAX_BODY_BYTES - 8
    for name, capabilities in described.items():
        body = _encoder.encode(capabilities)
        left -= len(body) + len(name.encode()) + 8
        if left < 0:
            break
        told[name] = msgspec.Raw(body)
    return _encoder.encode(told)


def decode_capabilities(frame: bytes | memoryview) -> CapabilitiesByModel:
    """Return the capabilities in the frame behind READY; models with unreadable entries are omitted."""
    if len(frame) > MAX_BODY_BYTES:
        return {}
    try:
        told = _decoder.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}
    described = {}
    for name, body in list(told.items())[:MAX_MODELS]:
        try:
            described[name] = _capabilities.decode(body)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            continue
    return described

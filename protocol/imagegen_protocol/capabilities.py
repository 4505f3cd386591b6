"""Capabilities of models, which workers report behind READY and the broker in its statistics."""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from imagegen_protocol.limits import (
    MAX_BODY_BYTES,
    MAX_CHOICES,
    MAX_GUIDANCE_SCALE,
    MAX_MODELS,
    MAX_SIDE_PIXELS,
    MAX_STEPS,
)
from imagegen_protocol.messages import Name

Choices = Annotated[list[Name], Meta(max_length=MAX_CHOICES)]
TaskName = Literal["text-to-image", "image-to-image", "inpainting"]
Side = Annotated[int, Meta(ge=1, le=MAX_SIDE_PIXELS)]


class ModelCapabilities(msgspec.Struct, frozen=True, kw_only=True):
    """Defaults and bounds of one model, as it was loaded. Sizes are in pixels."""

    width: Side
    """The default, as all that is no bound."""
    height: Side
    num_inference_steps: Annotated[int, Meta(ge=1, le=MAX_STEPS)]
    guidance_scale: Annotated[float, Meta(ge=0, le=MAX_GUIDANCE_SCALE)] | None = None
    """None: it takes none."""
    size_multiple: Side = 1
    """Width and height are whole multiples of it."""
    max_side: Side = MAX_SIDE_PIXELS
    negative_prompt: bool = False
    """Whether it takes one."""
    tasks: dict[TaskName, Annotated[float, Meta(ge=0, le=1)] | None]
    """What it does, and the default strength of each; None: that task takes none."""
    schedulers: Choices = []
    """Those that can be asked for, the model's own first."""
    loras: Choices | None = None
    """Those that were there; None: it takes none."""


CapabilitiesByModel = dict[Name, ModelCapabilities]
"""Models by name."""

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

"""What may be asked of one model, as JSON Schema words it: what its workers tell, within what a key may."""

from typing import Any, get_args

from imagegen_gateway.core.limits import Limits
from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.limits import (
    MAX_GUIDANCE_SCALE,
    MAX_IMAGES_PER_REQUEST,
    MAX_LORAS,
    MAX_PROMPT_LENGTH,
    MAX_STEPS,
)
from imagegen_protocol.request import DEFAULT_OUTPUT_FORMAT, OutputFormat

_SMALLEST_SIDE = 8

Parameters = dict[str, dict[str, Any]]


def parameters(takes: ModelCapabilities, limits: Limits) -> Parameters:
    """Return the parameters of a model by name, from its traits; one that it does not take is not there."""
    found: Parameters = {
        "width": _side(takes, takes.width, limits.max_width),
        "height": _side(takes, takes.height, limits.max_height),
        "num_inference_steps": {
            "default": takes.num_inference_steps,
            "minimum": 1,
            "maximum": min(MAX_STEPS, limits.max_steps or MAX_STEPS),
        },
        "n": {"default": 1, "minimum": 1, "maximum": MAX_IMAGES_PER_REQUEST},
        "output_format": {"default": DEFAULT_OUTPUT_FORMAT, "enum": list(get_args(OutputFormat))},
    }
    if takes.guidance_scale is not None:
        scale = {"default": takes.guidance_scale, "minimum": 0, "maximum": MAX_GUIDANCE_SCALE}
        found["guidance_scale"] = scale
    if takes.negative_prompt:
        found["negative_prompt"] = {"max_length": MAX_PROMPT_LENGTH}
    if takes.schedulers:
        found["scheduler"] = {"default": takes.schedulers[0], "enum": takes.schedulers}
    if takes.loras is not None:
        found["loras"] = {"max_items": MAX_LORAS, "enum": takes.loras}
    if "image-to-image" in takes.tasks:
        found["image"] = {}
    if "inpainting" in takes.tasks:
        found["mask"] = {}
    strengths = (takes.tasks.get("image-to-image"), takes.tasks.get("inpainting"))
    strength = next((each for each in strengths if each is not None), None)
    if strength is not None:
        found["strength"] = {"default": strength, "exclusive_minimum": 0, "maximum": 1}
    return found


def _side(takes: ModelCapabilities, default: int, most: int | None) -> dict[str, Any]:
    multiple = takes.size_multiple
    largest = takes.max_side if most is None else min(takes.max_side, most)
    return {
        "default": default,
        "minimum": -(-_SMALLEST_SIDE // multiple) * multiple,
        "maximum": largest // multiple * multiple,
        "multiple_of": multiple,
    }

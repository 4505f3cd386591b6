"""Arguments of a call that follow from the fields of a request, for the calls that have them."""

from collections.abc import Mapping
from typing import Any

from imagegen_worker.core.model import ResolvedRequest


def implied_arguments(defaults: Mapping[str, Any], request: ResolvedRequest) -> dict[str, Any]:
    """Return these arguments. `defaults`: the default of each parameter of the call."""
    found: dict[str, Any] = {}
    if "max_area" in defaults:  # FLUX.1 Kontext scales the size to this area
        found["max_area"] = request.width * request.height
    schedule = defaults.get("guidance_schedule")
    if isinstance(schedule, list | tuple) and schedule:  # Ideogram 4 has one guidance scale for each step
        if request.guidance_scale is not None:
            found["guidance_schedule"] = None
        elif len(schedule) != request.num_inference_steps:
            found["guidance_schedule"] = _resampled(schedule, request.num_inference_steps)
    return found


def _resampled(values: list[Any] | tuple[Any, ...], count: int) -> list[Any]:
    return [values[index * len(values) // count] for index in range(count)]

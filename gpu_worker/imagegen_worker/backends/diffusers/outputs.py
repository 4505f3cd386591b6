"""Outputs of forwards: split into the parts of the calls, merged from parts, and compared."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from imagegen_worker.backends.diffusers.layouts import PLAIN_TYPES, is_tensor_list
from imagegen_worker.engines.continuous.calls import NotShareableError

_TOLERANCE = 0.001
"""Largest difference of two outputs in float32 or float64, over the largest value, that counts as rounding."""
_HALF_PRECISION_TOLERANCE = 0.1
"""The same for 16 bits and fewer."""
_DROPPED = "past_key_values"
"""Field of decoders used as text encoders: a large cache for next tokens, which pipelines do not use."""


def images_of(output: Any) -> list[Any]:
    """Return the images of a pipeline call, whose output is a tuple or has the field `images` or `image`."""
    if isinstance(output, tuple):
        return list(output[0])
    images = getattr(output, "images", None)
    return list(output.image if images is None else images)


def map_tensors(value: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """Return a copy of an output with `change` applied to every tensor.

    Raises `NotShareableError` for an output of an unknown type.
    """
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, Mapping):
        fields = {key: map_tensors(item, change) for key, item in value.items() if key != _DROPPED}
        return fields if type(value) is dict else type(value)(**fields)
    if type(value) in (list, tuple):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, PLAIN_TYPES):
        return value
    raise _opaque(value)


def split(output: Any, rows: Sequence[int], *, listed: bool) -> list[Any]:
    """Return the part of each call of the output of a shared forward; `rows`: the rows of each call.

    Raises `NotShareableError` for an output of another number of rows, or of an unknown type.
    """
    total = sum(rows)
    parts = []
    begin = 0
    for count in rows:
        parts.append(_slice(output, begin, begin + count, total, listed))
        begin += count
    return parts


def _slice(output: Any, begin: int, end: int, total: int, listed: bool) -> Any:
    if isinstance(output, torch.Tensor):
        if output.ndim == 0 or output.shape[0] != total:
            raise NotShareableError("output", f"the output of {total} rows has the shape {tuple(output.shape)}")
        return output[begin:end]
    if isinstance(output, Mapping):
        fields = {key: _slice(item, begin, end, total, listed) for key, item in output.items() if key != _DROPPED}
        return fields if type(output) is dict else type(output)(**fields)
    if type(output) in (list, tuple):
        if is_tensor_list(output, total, listed):
            return output[begin:end]
        return type(output)(_slice(item, begin, end, total, listed) for item in output)
    if isinstance(output, PLAIN_TYPES):
        return output
    raise _opaque(output)


def merge(outputs: Sequence[Any], rows: Sequence[int], *, listed: bool) -> Any:
    """Return the output of one forward from those of its parts, which have `rows` rows each.

    Raises `NotShareableError` for outputs of an unknown type.
    """
    first = outputs[0]
    if len(outputs) == 1 or isinstance(first, PLAIN_TYPES):
        return first
    if isinstance(first, torch.Tensor):
        return torch.cat(list(outputs))
    if isinstance(first, Mapping):
        fields = {
            key: merge([output[key] for output in outputs], rows, listed=listed)
            for key in first
            if key != _DROPPED
        }
        return fields if type(first) is dict else type(first)(**fields)
    if type(first) in (list, tuple):
        if all(is_tensor_list(output, n, listed) for output, n in zip(outputs, rows, strict=True)):
            return type(first)(item for output in outputs for item in output)
        return type(first)(merge(list(items), rows, listed=listed) for items in zip(*outputs, strict=True))
    raise _opaque(first)


def is_close(shared: Any, alone: Any) -> bool:
    """Return whether two outputs are equal except for rounding, relative to the largest value of each tensor."""
    if isinstance(shared, torch.Tensor):
        return isinstance(alone, torch.Tensor) and _is_close_tensor(shared, alone)
    if isinstance(shared, Mapping):
        return all(is_close(shared[key], alone[key]) for key in shared if key != _DROPPED)
    if isinstance(shared, list | tuple):
        return len(shared) == len(alone) and all(map(is_close, shared, alone))
    return bool(shared == alone)


def _is_close_tensor(shared: torch.Tensor, alone: torch.Tensor) -> bool:
    if shared.shape != alone.shape:
        return False
    if not shared.is_floating_point():
        return bool(torch.equal(shared, alone))
    if not torch.equal(shared.isnan(), alone.isnan()):  # NaN in both comes from the model
        return False
    if not alone.numel():
        return True
    tolerance = _TOLERANCE if shared.dtype in (torch.float32, torch.float64) else _HALF_PRECISION_TOLERANCE
    shared, alone = shared.float().nan_to_num(), alone.float().nan_to_num()
    return bool((shared - alone).abs().max() <= tolerance * alone.abs().max().clamp(min=1e-6))


def distance(shared: Any, alone: Any) -> float:
    """Return the largest difference of two outputs, over the largest value; inf if they have other shapes."""
    if isinstance(shared, torch.Tensor):
        if not isinstance(alone, torch.Tensor) or shared.shape != alone.shape:
            return math.inf
        if not alone.numel():
            return 0.0
        ours, theirs = shared.double().nan_to_num(), alone.double().nan_to_num()
        return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))
    if isinstance(shared, Mapping):
        return max((distance(shared[key], alone[key]) for key in shared if key != _DROPPED), default=0.0)
    if isinstance(shared, list | tuple):
        if len(shared) != len(alone):
            return math.inf
        return max(map(distance, shared, alone), default=0.0)
    return 0.0 if shared == alone else math.inf


def nbytes(value: Any) -> int:
    """Return the bytes of all tensors of an output."""
    total = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal total
        total += tensor.nbytes
        return tensor

    map_tensors(value, count)
    return total


def _opaque(output: Any) -> NotShareableError:
    return NotShareableError("opaque output", f"the output has a {type(output).__name__}, which can't be divided")

"""Private copies of a pipeline: one for each call, which share the models but no state that a call changes."""

import copy
import functools
import types
import weakref
from collections.abc import Mapping
from typing import Any, cast

import diffusers
import torch
import transformers

_fresh_schedulers: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
"""A new scheduler for each scheduler of a pipeline; copying it takes a fifth of the time of creating one."""
_devices: "weakref.WeakKeyDictionary[Any, Any]" = weakref.WeakKeyDictionary()
"""Execution device by pipeline; diffusers walks all components to find it, in every call."""

_SHARED = (
    *(type(None), bool, int, float, str, bytes),
    torch.nn.Module,
    torch.Tensor,
    torch.Generator,
    torch.device,
    torch.dtype,
    # They convert texts and images without a forward in between, so no two calls use them at the same time.
    transformers.PreTrainedTokenizerBase,
    transformers.ProcessorMixin,
    transformers.FeatureExtractionMixin,
    transformers.ImageProcessingMixin,
    diffusers.image_processor.VaeImageProcessor,
    diffusers.configuration_utils.FrozenDict,
    types.FunctionType,
    types.MethodType,
    types.ModuleType,
    type,
)
"""Types of attributes that all calls share, because they have no state or are too large to copy."""


def private_copy(pipeline: Any) -> Any:
    """Return a copy of a pipeline for one call.

    Every attribute that may have state is copied: schedulers, guiders, pipelines in the pipeline, collections.
    """
    return _copy_pipeline(pipeline, {})


def _copy_pipeline(pipeline: Any, copies: dict[int, Any]) -> Any:
    """Return the copy of a pipeline. `copies`: copies by the id of the original, which may be used twice."""
    private = copies[id(pipeline)] = copy.copy(pipeline)
    for name, component in vars(pipeline).items():
        if (copied := _copy_part(component, copies)) is not component:
            object.__setattr__(private, name, copied)
    if hasattr(private, "set_progress_bar_config"):
        private.set_progress_bar_config(disable=True)
    # Offloading removes and adds its hooks when a call ends, while other calls still use them.
    object.__setattr__(private, "maybe_free_model_hooks", lambda: None)
    if hasattr(type(pipeline), "_execution_device"):
        if pipeline not in _devices:
            _devices[pipeline] = pipeline._execution_device
        object.__setattr__(private, "_fixed_device", _devices[pipeline])
        object.__setattr__(private, "__class__", _with_fixed_device(cast(Any, type(pipeline))))
    return private


def _copy_part(part: Any, copies: dict[int, Any]) -> Any:
    """Return the copy of an attribute of a pipeline, or the attribute itself if it has no state."""
    if id(part) in copies:
        return copies[id(part)]
    if isinstance(part, _SHARED):
        return part
    if isinstance(part, diffusers.DiffusionPipeline):
        return _copy_pipeline(part, copies)
    if hasattr(part, "set_timesteps") and hasattr(type(part), "from_config"):
        if part not in _fresh_schedulers:
            _fresh_schedulers[part] = type(part).from_config(part.config)
        copied = copy.deepcopy(_fresh_schedulers[part])
    else:
        copied = copy.deepcopy(part, {id(each): each for each in _shared_parts(part)})
    copies[id(part)] = copied
    return copied


def _shared_parts(part: Any, depth: int = 3) -> list[Any]:
    """Return the models and other shared objects in an attribute, which a deep copy must not copy."""
    if isinstance(part, _SHARED):
        return [part]
    if depth == 0:
        return []
    if isinstance(part, Mapping):
        items = list(part.values())
    elif isinstance(part, list | tuple | set | frozenset):
        items = list(part)
    else:
        items = list(vars(part).values()) if hasattr(part, "__dict__") else []
    return [shared for item in items for shared in _shared_parts(item, depth - 1)]


@functools.lru_cache(maxsize=64)
def _with_fixed_device(pipeline_class: type) -> type:
    """Return a subclass of a pipeline's class with a stored execution device."""
    device = property(lambda self: self._fixed_device)
    attributes = {"__module__": pipeline_class.__module__, "_execution_device": device}
    return type(pipeline_class.__name__, (pipeline_class,), attributes)

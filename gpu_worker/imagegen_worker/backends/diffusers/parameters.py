"""Parameters of a pipeline's call beyond the fields of requests: those whose types are plain."""

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Union

import msgspec

from imagegen_protocol.limits import MAX_STEPS
from imagegen_protocol.request import FIELDS

OWNED: Mapping[str, str] = {
    "generator": "say the seed",
    "num_images_per_prompt": "say num_images",
    "num_videos_per_prompt": "say num_images",
    "num_prompts_per_image": "say num_images",
    "output_type": "say the output_format",
}
"""Parameters that fields of the request set, with the advice for a request that names them."""
_NEVER = frozenset({"return_dict", "padding_mask_crop"})
"""Parameters that change the type or the size of the result."""
_TENSORS = ("_embeds", "latents", "_mask")
"""Suffixes of parameters for tensors; some pipelines annotate them as text."""

_PLAIN = (bool, int, float, str)
_SCALAR = bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Signature:
    """Parameters of a call: all names, types of those that requests may set, and the defaults of all.

    `texts`: the parameters that are given for each prompt of a batched call.
    """

    names: frozenset[str]
    extra: Mapping[str, Any]
    texts: frozenset[str]
    defaults: Mapping[str, Any]


def read_signature(pipeline: Any) -> Signature:
    """Return the signature of a pipeline, or of a pipeline class."""
    parameters = _parameters(pipeline)
    extra, texts = {}, set()
    for name, parameter in parameters.items():
        owned = name in FIELDS or name in OWNED or name in _NEVER
        if owned or name.startswith("callback") or name.endswith(_TENSORS):
            continue
        hint = _plain(parameter.annotation)
        if hint is None or not _can_check(hint | None):
            continue
        if _is_text(parameter.annotation):
            texts.add(name)
            hint = str
        hint = _limited(name, hint)
        extra[name] = hint | None if parameter.default is None or type(None) in typing.get_args(hint) else hint
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return Signature(frozenset(parameters), extra, frozenset(texts), defaults)


def _limited(name: str, hint: Any) -> Any:
    """Return the type of a parameter with the limit on denoising steps, if it sets their number.

    Lists of sigmas or timesteps do, and so do the step counts of further models of a pipeline.
    """
    is_union = typing.get_origin(hint) in (Union, types.UnionType)
    members = typing.get_args(hint) if is_union else (hint,)
    if name.endswith("num_inference_steps") and int in members:
        return Annotated[int, msgspec.Meta(ge=1, le=MAX_STEPS)]
    if name.endswith(("sigmas", "timesteps")):
        lists = [member for member in members if typing.get_origin(member) is list]
        if len(lists) == 1:
            return Annotated[lists[0], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]
    return hint


def _parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    call = pipeline.__call__
    try:
        signature = inspect.signature(call, eval_str=True)
    except (NameError, SyntaxError, TypeError):  # annotations with names that only type checkers import
        signature = inspect.signature(call)
    variadic = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {
        name: part for name, part in signature.parameters.items() if name != "self" and part.kind not in variadic
    }


def _plain(hint: Any) -> Any:
    """Return the part of a type that a message can carry; None if there is none but None."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if hint in _PLAIN:
        return hint
    if origin in (Union, types.UnionType):
        members = [part for part in map(_plain, parts) if part is not None]
        joined: Any = None
        for member in members:
            joined = member if joined is None else joined | member
        return joined if joined is None or type(None) not in parts else joined | None
    if origin is list and all(_is_scalar(part) for part in parts):
        return hint
    if origin is tuple and all(part is Ellipsis or _is_scalar(part) for part in parts):
        # `tuple[int]` in annotations means several values.
        return types.GenericAlias(tuple, (parts[0], ...)) if len(parts) == 1 else hint
    if origin is dict and parts[0] is str and (parts[1] is Any or _is_scalar(parts[1])):
        return dict[str, _SCALAR] if parts[1] is Any else hint
    return None


def _is_scalar(hint: Any) -> bool:
    parts = typing.get_args(hint)
    return hint in (*_PLAIN, type(None)) or (bool(parts) and all(part in (*_PLAIN, type(None)) for part in parts))


def _is_text(hint: Any) -> bool:
    return {str, list[str]} <= set(typing.get_args(hint))


def _can_check(hint: Any) -> bool:
    """Return whether msgspec can check values against a type; for a union of two list types, it can't."""
    try:
        msgspec.convert(None, hint)
    except TypeError:
        return False
    return True

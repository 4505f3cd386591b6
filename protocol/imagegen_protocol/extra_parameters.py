"""Validation of the `extra` parameters of a request, whose number, depth and size are limited."""

import math
from collections.abc import Sequence
from typing import Any

import msgpack

from imagegen_protocol.error_texts import format_value
from imagegen_protocol.errors import InvalidRequestError
from imagegen_protocol.limits import MAX_EXTRA, MAX_EXTRA_BYTES, MAX_EXTRA_ITEMS, MAX_NAME_LENGTH

_MAX_INT = 2**63 - 1
_ALLOWED = "nil, a bool, an int of 64 bits, a finite float, a str, or a flat list or map of those"


def check_extra_parameters(extra: dict[str, Any], fields: Sequence[str]) -> None:
    """Raise `InvalidRequestError` if `extra` is invalid. `fields`: the names of the other request parameters."""
    if len(extra) > MAX_EXTRA:
        raise InvalidRequestError(f"extra: expected at most {MAX_EXTRA} parameters, got {len(extra)}")
    for name, value in extra.items():
        if not (name.isidentifier() and name.isascii() and len(name) <= MAX_NAME_LENGTH):
            allowed = f"the name of a parameter (letters, digits and _, at most {MAX_NAME_LENGTH})"
            raise InvalidRequestError(f"extra: expected {allowed}, got {format_value(name)}")
        if name in fields:
            raise InvalidRequestError(f"extra: {name!r} is a field of the request itself; set it there")
        _check_value(name, value)
    try:
        size = len(msgpack.packb(extra))
    except ValueError as error:  # such as half of a surrogate pair
        raise InvalidRequestError(f"extra: expected text that is UTF-8: {error}") from error
    if size > MAX_EXTRA_BYTES:
        raise InvalidRequestError(f"extra: expected at most {MAX_EXTRA_BYTES} bytes in total, got {size}")


def _check_value(name: str, value: Any) -> None:
    items: list[Any] = [value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise InvalidRequestError(f"extra: {name}: expected str keys, got {format_value(value)}")
        items = list(value.values())
    elif isinstance(value, list | tuple):
        items = list(value)
    if len(items) > MAX_EXTRA_ITEMS:
        raise InvalidRequestError(f"extra: {name}: expected at most {MAX_EXTRA_ITEMS} items, got {len(items)}")
    for item in items:
        if not _is_plain(item):
            raise InvalidRequestError(f"extra: {name}: expected {_ALLOWED}, got {format_value(item)}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -_MAX_INT - 1 <= value <= _MAX_INT
    return value is None or isinstance(value, str)

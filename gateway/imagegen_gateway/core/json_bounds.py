"""Parsing of JSON from clients within limits on its values, its depth and the length of its texts."""

from collections.abc import Collection, Iterator
from typing import Any

import msgspec

MAX_VALUES = 1000
"""Maximum number of values in one text: list items and object fields at any depth."""
MAX_TEXT = 64 * 1024
"""Maximum number of characters of a text, except of images."""
MAX_KEY = 256
"""Maximum number of characters of a field's name."""
MAX_STRUCTURE = 64 * 1024
"""Maximum number of separators and brackets. Checked before parsing, so it counts those within texts."""

_STRUCTURE = b",:[{"
_SLICE = 64 * 1024
"""Bytes scanned at once; other threads can run in between."""


class JsonError(ValueError):
    """The text is not valid JSON; the message gives the reason."""


class JsonTooLargeError(ValueError):
    """The text exceeds a limit; the message names it. `field` is the field at the top level, if known."""

    def __init__(self, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field


def parse_json(data: bytes, long_fields: Collection[str] = ()) -> Any:
    """Return the value of a JSON text. Only `long_fields` of the object may exceed `MAX_TEXT`.

    Raises `JsonError` and `JsonTooLargeError`.
    """
    structure = 0
    for start in range(0, len(data), _SLICE):
        part = data[start : start + _SLICE]
        structure += len(part) - len(part.translate(None, _STRUCTURE))
        if structure > MAX_STRUCTURE:
            raise JsonTooLargeError(f"expected at most {MAX_VALUES} values")
    try:
        value = msgspec.json.decode(data)
    except RecursionError as error:
        raise JsonTooLargeError("too many nested lists and objects") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JsonError(str(error)) from error
    _check(value, long_fields)
    return value


def _check(value: Any, long_fields: Collection[str]) -> None:
    """Raise `JsonTooLargeError` for too many values and for long texts."""
    waiting: list[tuple[str | None, Any]] = [(None, value)]
    count = 0
    while waiting:
        name, current = waiting.pop()
        if isinstance(current, str) and len(current) > MAX_TEXT and name not in long_fields:
            message = f"expected at most {MAX_TEXT} characters, got {len(current)}"
            raise JsonTooLargeError(message, name)
        if isinstance(current, dict) and any(len(key) > MAX_KEY for key in current):
            raise JsonTooLargeError(f"expected field names of at most {MAX_KEY} characters", name)
        inner = list(_children(name, current))
        count += len(inner)
        if count > MAX_VALUES:
            raise JsonTooLargeError(f"expected at most {MAX_VALUES} values", name)
        waiting += inner


def _children(name: str | None, value: Any) -> Iterator[tuple[str | None, Any]]:
    """Yield the values inside a list or object, each with its field of the top level."""
    if isinstance(value, list):
        return ((name, item) for item in value)
    if isinstance(value, dict):
        return ((key if name is None else name, item) for key, item in value.items())
    return iter(())

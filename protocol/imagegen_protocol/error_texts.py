"""Texts of validation errors, with the field, the allowed values and the value received."""

import reprlib
from collections.abc import Mapping
from typing import Any

MAX_SHOWN = 80
"""Maximum characters of an invalid value in an error message."""


def describe_validation_error(fields: Mapping[str, Any], problem: str) -> str:
    """Return the text of an error of msgspec about `fields`, with the field's name and its value."""
    what, _, path = problem.partition(" - at `$.")
    name = path.rstrip("`").partition("[")[0].partition(".")[0]
    what = what[:1].lower() + what[1:]
    if not name:
        return what
    return f"{name}: {what}, got {format_value(fields[name])}" if name in fields else f"{name}: {what}"


def format_value(value: object) -> str:
    """Return a value for an error message, in at most `MAX_SHOWN` characters."""
    try:
        text = repr(value[:MAX_SHOWN]) if isinstance(value, str | bytes) else _short.repr(value)
    except (ValueError, RecursionError):  # such as an integer of thousands of digits
        return f"a value of type {type(value).__name__} that can't be shown"
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


_short = reprlib.Repr()
_short.maxlevel = 4  # the plain repr of a deeply nested list from an untrusted peer exhausts the stack
_short.maxstring = _short.maxother = _short.maxlong = MAX_SHOWN

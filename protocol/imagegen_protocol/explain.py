"""Validation errors in words: the field, what is allowed, and the value that was given."""

import reprlib
from collections.abc import Mapping
from typing import Any

MAX_SHOWN = 80
"""Characters of a wrong value that an error shows."""


def explain(fields: Mapping[str, Any], problem: str) -> str:
    """Turn msgspec's error about `fields` into one that names the field, what is allowed and the value given."""
    what, _, path = problem.partition(" - at `$.")
    name = path.rstrip("`").partition("[")[0].partition(".")[0]
    what = what[:1].lower() + what[1:]
    if not name:
        return what
    return f"{name}: {what}, got {show(fields[name])}" if name in fields else f"{name}: {what}"


def show(value: object) -> str:
    """Return a value as an error shows it: short, whatever it is."""
    try:
        shown = repr(value[:MAX_SHOWN]) if isinstance(value, str | bytes) else _shown.repr(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, for one
        return f"a value of type {type(value).__name__} that can't be shown"
    return shown if len(shown) <= MAX_SHOWN else shown[: MAX_SHOWN - 3] + "..."


_shown = reprlib.Repr()
# The plain repr of a list in a list in a list ... runs out of stack, and whoever sends it is not to be trusted.
_shown.maxlevel = 4
_shown.maxstring = _shown.maxother = _shown.maxlong = MAX_SHOWN

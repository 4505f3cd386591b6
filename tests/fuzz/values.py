"""Well-typed values, often extreme ones, for any type of the protocol. New fields need no change here."""

from functools import cache
from math import nextafter
from typing import Any

import msgspec
from msgspec import inspect

from imagegen_protocol.frames import encode
from imagegen_protocol.limits import MAX_FLOAT, MAX_INTEGER, MIN_INTEGER
from imagegen_protocol.messages import Message
from tests.fuzz.choices import Choices

IDS = tuple(bytes([number]) * 16 for number in range(8))
NAMES = ("m", "n", "w", "\U0001f600" * 128, "x" * 128, "../..", "{}", '"\\', "\u2028", "\u202e")
_BY_PATTERN = {
    "^[a-z]": ("returned", "overloaded", "generation_failed", "unauthorized", "invalid_request", "a" * 64),
    "^[^\\s/]+:": ("h:1", "[::1]:99999", "\u202e:0", "a" * 294 + ":65535"),
    "^00-": ("00-" + "1" * 32 + "-" + "2" * 16 + "-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-00"),
}
_DEPTH = 3
"""Maximum depth of lists and maps without a type of their own."""


def make(kind: type[Message], choices: Choices, **fixed: Any) -> Message:
    """Return a message with chosen values in all fields that are not `fixed`."""
    return _struct(kind, choices, fixed)


def checked(message: Message, decode: Any) -> Message:
    """Return a message as its receiver decodes it: this proves that it is well-typed."""
    return decode(encode(message))


def _struct(kind: type[msgspec.Struct], choices: Choices, fixed: dict[str, Any] | None = None) -> Any:
    values = dict(fixed or {})
    for field in _fields(kind):
        # Half of the optional fields keep their default, so that a few bytes make a message.
        if field.name in values or field.name == "v" or (not field.required and choices.boolean()):
            continue
        values[field.name] = value(field.type, choices)
    return kind(**values)


@cache
def _fields(kind: type[msgspec.Struct]) -> tuple[inspect.Field, ...]:
    struct = inspect.type_info(kind)
    assert isinstance(struct, inspect.StructType)
    return struct.fields


def value(type_: inspect.Type, choices: Choices, depth: int = 0) -> Any:
    """Return a value of a type within its limits."""
    match type_:
        case inspect.Metadata(type=inner):
            return value(inner, choices, depth)
        case inspect.UnionType(types=types):
            return value(choices.pick(types), choices, depth)
        case inspect.NoneType():
            return None
        case inspect.AnyType():
            return choices.pick((None, 2**63 - 1, MAX_FLOAT, "text", [1, None], {"key": -1.0}, b"no", [[[]]]))
        case inspect.BoolType():
            return choices.boolean()
        case inspect.IntType(ge=ge, gt=gt, le=le):
            low = MIN_INTEGER if ge is None and gt is None else ge if gt is None else gt + 1
            high = MAX_INTEGER if le is None else le
            return choices.pick((low, min(low + 1, high), high, choices.integer(low, high)))
        case inspect.FloatType():
            return _number(type_, choices)
        case inspect.StrType(pattern=pattern, max_length=longest):
            return _text(pattern, longest, choices)
        case inspect.BytesType(min_length=shortest, max_length=longest):
            return (
                choices.pick(IDS)[: longest or 16]
                if shortest
                else choices.bytes(choices.integer(0, longest or 16))
            )
        case inspect.LiteralType(values=values):
            return choices.pick(values)
        case inspect.StructType(cls=cls):
            return _struct(cls, choices)
        case inspect.ListType(item_type=item, min_length=shortest, max_length=longest):
            size = choices.integer(shortest or 0, min(longest or 4, 4)) if depth < _DEPTH else shortest or 0
            return [value(item, choices, depth + 1) for _ in range(size)]
        case inspect.DictType(key_type=key, value_type=inner):
            size = choices.integer(0, 3) if depth < _DEPTH else 0
            return {value(key, choices, depth + 1): value(inner, choices, depth + 1) for _ in range(size)}
    raise TypeError(f"no values for the type {type_}")


def _number(type_: inspect.FloatType, choices: Choices) -> float:
    low = nextafter(type_.gt, MAX_FLOAT) if type_.gt is not None else -MAX_FLOAT if type_.ge is None else type_.ge
    high = MAX_FLOAT if type_.le is None else type_.le
    tiny = [each for each in (5e-324, 1.0, 0.1) if low <= each <= high]
    part = choices.integer(0, 255) / 255
    between = low * (1 - part) + high * part
    return float(choices.pick((low, high, nextafter(low, high), *tiny, between)))


def _text(pattern: str | None, longest: int | None, choices: Choices) -> str:
    options = next((texts for start, texts in _BY_PATTERN.items() if (pattern or "").startswith(start)), NAMES)
    text = choices.pick(options)
    return text if longest is None else text[:longest]

"""Invalid values for every field of a struct, derived from its types, so that new fields are covered."""

import math
import re
from typing import Any, NamedTuple

from msgspec import inspect

SPECIMENS = {
    "bool": True, "int": 7, "float": 0.5, "str": "big", "bytes": b"big", "array": [["big"]], "object": {"big": 1},
    "null": None,
}  # fmt: skip
"""A value of each msgpack type, by msgspec's name of the type."""


class Wrong(NamedTuple):
    """An invalid value of a field, and a text that the error must contain."""

    field: str
    value: Any
    says: str

    def __str__(self):
        shown = repr(self.value)
        return f"{self.field}={shown if len(shown) < 24 else shown[:20] + '...'}"


def wrong_values(struct, *but):
    """Return invalid values for each field of a struct, except the fields in `but`."""
    fields = [field for field in inspect.type_info(struct).fields if field.name not in but]
    return [Wrong(field.name, *wrong) for field in fields for wrong in _wrong(field.type)]


def _wrong(kind):
    """Yield invalid values of a type, each with a text that the error must contain."""
    kinds = kind.types if isinstance(kind, inspect.UnionType) else (kind,)
    taken = set().union(*(_kinds(each) for each in kinds))
    for name, value in SPECIMENS.items():
        if name not in taken:
            yield value, "expected"
    for each in kinds:
        match each:
            case inspect.IntType() | inspect.FloatType():
                yield from _out_of_range(each)
            case inspect.StrType():
                yield from _wrong_text(each)
            case inspect.LiteralType():
                yield from (("no-such-choice", str(choice)) for choice in each.values)
            case inspect.BytesType() if each.max_length is not None:
                yield b"x" * (each.max_length + 1), f"<= {each.max_length}"
            case inspect.ListType():
                if each.max_length is not None:
                    yield [_good(each.item_type)] * (each.max_length + 1), f"<= {each.max_length}"
                yield from (([item], words) for item, words in _wrong(each.item_type))
            case inspect.StructType():
                good = _good(each)
                for field in each.fields:
                    yield from (({**good, field.name: value}, words) for value, words in _wrong(field.type))
                yield {**good, "no_such_key": 1}, "no_such_key"


def _kinds(kind):
    """Return the msgpack types that a type accepts."""
    match kind:
        case inspect.FloatType():
            return {"float", "int"}
        case inspect.LiteralType() | inspect.StrType():
            return {"str"}
        case inspect.ListType():
            return {"array"}
        case inspect.StructType() | inspect.DictType():
            return {"object"}
        case inspect.AnyType():
            return set(SPECIMENS)
        case inspect.BoolType() | inspect.IntType() | inspect.BytesType() | inspect.NoneType():
            return {{"none": "null"}.get(name := type(kind).__name__.removesuffix("Type").lower(), name)}
    raise AssertionError(f"say what is wrong for {kind}")


def _out_of_range(kind):
    step = 1 if isinstance(kind, inspect.IntType) else 0.125
    if kind.ge is not None:
        yield kind.ge - step, f">= {kind.ge}"
    if kind.gt is not None:
        yield kind.gt, f"> {kind.gt}"
        yield kind.gt - step, f"> {kind.gt}"
    if kind.le is not None:
        yield kind.le + step, f"<= {kind.le}"
        yield 2**64 - 1, f"<= {kind.le}"
    if isinstance(kind, inspect.FloatType):
        yield from ((value, "expected") for value in (math.nan, math.inf, -math.inf))


def _wrong_text(kind):
    if kind.min_length:
        yield "", f">= {kind.min_length}"
    if kind.max_length is not None:
        yield "x" * (kind.max_length + 1), f"<= {kind.max_length}"
    if kind.pattern is not None and not re.search(kind.pattern, "a\nb"):
        yield "a\nb", "matching"


def _good(kind):
    """Return a valid value of a type."""
    match kind:
        case inspect.StrType():
            return "a"
        case inspect.LiteralType():
            return kind.values[0]
        case inspect.IntType() | inspect.FloatType():
            return kind.ge or 1
        case inspect.BytesType():
            return b"x" * (kind.min_length or 1)
        case inspect.NoneType():
            return None
        case inspect.StructType():
            return {field.name: _good(field.type) for field in kind.fields if field.required}
    raise AssertionError(f"say what is right for {kind}")

"""Reference tables of the protocol's messages, from their structs and the docstrings of the fields."""

import ast
from functools import cache
from inspect import getsource
from itertools import chain
from typing import Any, get_args

import msgspec
from msgspec import inspect

from imagegen_protocol import costs, fields, messages

_NUMBERS = {2**40: "2⁴⁰", 2**63 - 1: "2⁶³−1", 1e-6: "0.000001"}
_NAME = get_args(fields.Name)[1].pattern
_PATTERNS = {
    get_args(fields.Address)[1].pattern: "HOST:PORT, ≤ 300 characters",
    get_args(fields.Code)[1].pattern: "1 … 64 characters of a–z, 0–9 and _, a letter first",
    get_args(fields.Traceparent)[1].pattern: "55 characters, see *Traces*",
}


def message_table(name: str) -> list[list[str]]:
    """Return the keys that a struct of `messages.py` or `costs.py` declares itself, header row first."""
    info = inspect.type_info(getattr(messages, name))
    assert isinstance(info, inspect.StructType)
    texts = descriptions()[name]
    rows = [["key", "type", "range", "default", "description"]]
    for field in info.fields:
        if field.name in texts:
            text = texts[field.name].replace("None", "nil")
            rows.append([f"`{field.name}`", *_type_and_range(field.type), _default(field), text])
    return rows


@cache
def descriptions() -> dict[str, dict[str, str]]:
    """Return the docstring of each field, by the names of struct and field."""
    trees = [ast.parse(getsource(module)) for module in (costs, messages)]
    return {
        struct.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in zip(struct.body, struct.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(text.value.value, str)
        }
        for struct in chain(*(tree.body for tree in trees))
        if isinstance(struct, ast.ClassDef)
    }


def _type_and_range(type_: inspect.Type) -> tuple[str, str]:
    match type_:
        case inspect.UnionType(types=(member, inspect.NoneType())):
            name, range_ = _type_and_range(member)
            return f"{name} or nil", range_
        case inspect.IntType() | inspect.FloatType():
            name = "int" if isinstance(type_, inspect.IntType) else "float"
            low = f"{_number(type_.ge)} …" if type_.ge is not None else f"{_number(type_.gt)} < … ≤"
            return name, f"{low} {_number(type_.le)}"
        case inspect.BoolType():
            return "bool", "true, false"
        case inspect.BytesType(min_length=least, max_length=most):
            return ("id", f"{most} bytes") if least == most else ("bin", f"0 … {most} bytes")
        case inspect.StrType(pattern=pattern, max_length=most) if pattern == _NAME:
            return "name", f"1 … {most} characters"
        case inspect.StrType(pattern=pattern, max_length=most):
            return "str", _PATTERNS[pattern] if pattern else f"≤ {most:,} characters" if most else "any"
        case inspect.LiteralType(values=values):
            return "str", ", ".join(f"`{value}`" for value in values)
        case inspect.StructType():
            return "map", "keys below"
        case inspect.ListType(item_type=item, min_length=least, max_length=most):
            name, range_ = _type_and_range(item)
            items = f"{least or 0} … {most:,} items" if most else ""
            each = f"each {range_}" if isinstance(item, inspect.IntType) else range_
            each = "" if name in ("id", "name") else each
            return f"list of {name}s", ", ".join(filter(None, (items, each)))
        case inspect.DictType(value_type=inspect.StructType(), max_length=most):
            return "map of names to maps", f"0 … {most} items, keys below"
        case inspect.DictType():
            return "map", "keys of §6, and `task`"
    raise TypeError(f"no name for the type {type_}")


def _number(value: Any) -> str:
    """Return a number without an exponent, such as 1,073,741,824."""
    text = f"{value:,}" if isinstance(value, int) else f"{value:,f}".rstrip("0").rstrip(".")
    return _NUMBERS.get(value) or text.replace("-", "−")


def _default(field: inspect.Field) -> str:
    if field.required:
        return "required"
    if isinstance(field.default, msgspec.Struct):
        return "defaults of its keys"
    if field.default is msgspec.NODEFAULT:
        return f"{field.default_factory()}"
    if field.default is None or isinstance(field.default, bool):
        return {None: "nil", True: "true", False: "false"}[field.default]
    if isinstance(field.default, bytes):
        return "empty"
    return f"`{field.default}`" if isinstance(field.default, str) else _number(field.default)

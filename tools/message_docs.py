"""Reference tables of the protocol's messages, from their structs and the docstrings of the fields."""

import ast
from functools import cache
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

from imagegen_protocol import messages

_NUMBERS = {2**40: "2⁴⁰", 2**63 - 1: "2⁶³−1", 1e9: "10⁹", 1e6: "10⁶", 1e-6: "10⁻⁶"}
_NAME = get_args(messages.Name)[1].pattern
_PATTERNS = {
    get_args(messages.Address)[1].pattern: "HOST:PORT, ≤ 300 characters",
    get_args(messages.Traceparent)[1].pattern: "55 characters",
}


def message_table(name: str) -> list[list[str]]:
    """Return the keys that a struct of `messages.py` declares itself, header row first."""
    info = inspect.type_info(getattr(messages, name))
    assert isinstance(info, inspect.StructType)
    descriptions = _descriptions()[name]
    rows = [["key", "type", "range", "default", "description"]]
    for field in info.fields:
        if field.name in descriptions:
            text = descriptions[field.name].replace("None", "nil")
            rows.append([f"`{field.name}`", *_type_and_range(field.type), _default(field), text])
    return rows


@cache
def _descriptions() -> dict[str, dict[str, str]]:
    """Return the docstring of each field, by the names of struct and field."""
    tree = ast.parse(Path(messages.__file__).read_text())
    return {
        struct.name: {
            field.target.id: " ".join(text.value.value.split())
            for field, text in zip(struct.body, struct.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(text.value.value, str)
        }
        for struct in tree.body
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
            return "bool", ""
        case inspect.BytesType():
            return "id", ""
        case inspect.StrType(pattern=pattern) if pattern == _NAME:
            return "name", ""
        case inspect.StrType(pattern=pattern):
            return "str", _PATTERNS.get(pattern or "", "")
        case inspect.LiteralType(values=values):
            return "str", ", ".join(f"`{value}`" for value in values)
        case inspect.StructType():
            return "map", "keys below"
        case inspect.ListType(item_type=item, min_length=least, max_length=most):
            name, range_ = _type_and_range(item)
            return f"list of {name}s", f"{least or 0} … {most:,} items" if most else range_
        case inspect.DictType():
            return "map", "keys of §5"
    raise TypeError(f"no name for the type {type_}")


def _number(value: Any) -> str:
    return _NUMBERS.get(value) or f"{value:,g}".replace("-", "−")


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
    return f"`{field.default}`" if isinstance(field.default, str) else f"{field.default:g}"

"""Pydantic fields of the HTTP API, derived from the declaration of the request parameters."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from imagegen_gateway.core.json_bounds import parse_json
from imagegen_protocol.declaration import Parameter, Parameters

Fields = dict[str, Any]
"""Definitions of fields by name, as `pydantic.create_model` takes them."""

_STRICT = ConfigDict(extra="forbid", strict=True)
_TYPES: dict[str, Any] = {"integer": int, "number": float, "boolean": bool, "string": str, "map": dict[str, Any]}
_CONSTRAINTS = {
    "minimum": "ge",
    "exclusive_minimum": "gt",
    "maximum": "le",
    "min_length": "min_length",
    "max_length": "max_length",
    "max_items": "max_length",
    "pattern": "pattern",
}


def body_fields(parameters: Parameters) -> Fields:
    """Return the fields of a JSON body, without images, by their names in the HTTP API."""
    return {each.http_name: _field(each, _type(each)) for each in parameters.values() if _is_value(each)}


def form_fields(parameters: Parameters) -> Fields:
    """Return the fields whose types differ in a form: lists and maps are JSON, images are files."""
    fields = {}
    for each in parameters.values():
        if not each.info.in_http:
            continue
        if each.kind == "image":
            fields[each.http_name] = _field(each, UploadFile)
        elif each.kind in ("objects", "map") and not each.has_images:
            fields[each.http_name] = _field(each, _type(each), "In a form: JSON.", BeforeValidator(_parse(each)))
    return fields


def image_fields(parameters: Parameters) -> Fields:
    """Return the image fields of a JSON body: base64 or a `data:` URL, or a list of them."""
    return {
        each.http_name: (
            str | None if each.kind == "image" else list[str] | None,
            Field(
                None,
                min_length=1,
                max_length=each.max_items,
                description=f"{describe(each)} As base64 or a `data:` URL.",
                examples=[None],
            ),
        )
        for each in parameters.values()
        if each.info.in_http and each.kind in ("image", "images")
    }


def form_field(parameter: Parameter) -> dict[str, Any]:
    """Return the description of a parameter from which the web page builds a form field."""
    info = parameter.info
    own = None if info.in_http else parameter.name
    described = {
        "name": own or parameter.http_name,
        "label": info.label,
        "description": describe(parameter),
        "kind": parameter.kind,
        "group": info.group,
        "listed": info.listed,
        "choices_by_model": info.choices_by_model,
        "default": parameter.default,
        "fields": [form_field(field) for field in parameter.fields] or None,
        **_rust_pattern(parameter.json_schema()),
    }
    # FastAPI omits null from its OpenAPI document.
    return {name: value for name, value in described.items() if value is not None}


def describe(parameter: Parameter) -> str:
    """Return the description of a parameter, with its unit and its default."""
    info, words = parameter.info, parameter.default_words
    sentences = (
        info.description,
        info.http_note,
        info.unit and f"In {info.unit}.",
        words and f"Default: {words}.",
    )
    return " ".join(sentence for sentence in sentences if sentence)


def _is_value(parameter: Parameter) -> bool:
    return parameter.info.in_http and not parameter.has_images


def _type(parameter: Parameter) -> Any:
    if parameter.choices:
        return Literal[parameter.choices]
    if parameter.kind == "objects":
        fields: Fields = {field.name: _field(field, _type(field)) for field in parameter.fields}
        name = parameter.name.title().replace("_", "").removesuffix("s")
        return list[create_model(name, __config__=_STRICT, __doc__=parameter.info.description, **fields)]  # type: ignore[misc]
    return _TYPES[parameter.kind]


def _field(parameter: Parameter, type_: Any, note: str = "", *annotations: Any) -> tuple[Any, Any]:
    """Return the definition of a field; optional fields accept null, and are null by default."""
    bounds = {} if parameter.choices else _rust_pattern(parameter.json_schema())
    constraints: dict[str, Any] = {_CONSTRAINTS[name]: bound for name, bound in bounds.items()}
    # Required on the wire may still be optional here: the client chooses a seed.
    optional = parameter.default_words is not None or not parameter.required
    field: Any = Field(
        None if optional else ...,
        description=f"{describe(parameter)} {note}".rstrip(),
        title=parameter.info.label,
        **constraints,
    )
    hint = type_ | None if optional else type_
    for annotation in annotations:
        hint = Annotated[hint, annotation]
    return hint, field


def _rust_pattern(bounds: dict[str, Any]) -> dict[str, Any]:
    r"""Return bounds whose pattern ends in `$`, because JSON Schema and pydantic do not support `\Z`."""
    if "pattern" in bounds:
        return {**bounds, "pattern": bounds["pattern"].replace(r"\Z", "$")}
    return bounds


def _parse(parameter: Parameter) -> Callable[[Any], Any]:
    """Return a function that parses a form value: JSON text, or a list of one such text."""
    fields = [f'"{field.name}": …' for field in parameter.fields]
    example = f"[{{{', '.join(fields)}}}]" if fields else '{"name": …}'

    def parse(value: Any) -> Any:
        if isinstance(value, list) and len(value) == 1:
            [value] = value
        if isinstance(value, str):
            try:
                return parse_json(value.encode())
            except ValueError as error:
                raise ValueError(f"expected JSON such as {example}: {error}") from error
        return value

    return parse


def make_body(name: str, fields: Fields) -> type[BaseModel]:
    """Return a strict model with these fields."""
    model: type[BaseModel] = create_model(name, __config__=_STRICT, **fields)
    return model

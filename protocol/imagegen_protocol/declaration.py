"""Declaration of request parameters as typed fields of a struct, each annotated with a `ParameterInfo`.

`read_parameters` turns the annotated fields of a struct into `Parameter` objects, from which the command line, the
HTTP schema, the web page, the merging of capabilities and the reference tables are derived.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

import msgspec
from msgspec import inspect

TaskName = Literal["text-to-image", "image-to-image", "inpainting"]
TASKS: tuple[TaskName, ...] = get_args(TaskName)
Kind = Literal["integer", "number", "boolean", "string", "map", "objects", "image", "images"]
"""Kind of value; `objects` is a list of structs, `images` a list of images."""
Group = Literal["main", "more", "image"]
"""Place of a field on the web page: main options, further options, or next to the input image."""

Frame: TypeAlias = None
"""Type of an image in the body: nil. The image is a frame after the body, and `inputs` lists its path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterInfo:
    """Properties of a parameter that do not follow from its type."""

    label: str
    """Display name, of one to three words."""
    description: str
    """Description in one sentence."""
    unit: str | None = None
    """Unit of the value; None if it has none."""
    unset: str | None = "the model's"
    """Description of what applies without a value; None if a value is required or there is a `default`."""
    default: str | int | float | bool | None = None
    """Default value, if it is the same for all models."""
    tasks: tuple[TaskName, ...] = TASKS
    """Tasks that the parameter applies to; a request for another task that sets it is rejected."""
    option: str | None = None
    """Command-line option; None for `--` and the name with dashes."""
    metavar: str | None = None
    """Placeholder for the option's value in the help."""
    http_name: str | None = None
    """Name in the HTTP API (OpenAI's name, if there is one); None for the same name."""
    http_note: str | None = None
    """Sentence for the documentation of the HTTP API only."""
    in_http: bool = True
    """Whether the HTTP API has a field of `http_name`."""
    per_model: bool = True
    """Whether acceptance and default depend on the model."""
    choices_by_model: bool = False
    """Whether each model has a list of accepted values."""
    listed: bool = True
    """Whether `/v1/models` lists it."""
    in_result: bool = True
    """Whether RESULT reports it; the metadata of an image contain the same parameters and the prompts."""
    group: Group | None = None
    """Place on the web page; None if the page has no generated field for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A declared parameter with its type, range, default and `ParameterInfo`."""

    name: str
    info: ParameterInfo
    kind: Kind
    required: bool
    default: Any = None
    """Default value; None if there is no fixed one (see `ParameterInfo.unset`)."""
    minimum: int | float | None = None
    exclusive_minimum: int | float | None = None
    maximum: int | float | None = None
    min_length: int | None = None
    """Minimum number of characters."""
    max_length: int | None = None
    """Maximum number of characters."""
    pattern: str | None = None
    choices: tuple[str, ...] = ()
    max_items: int | None = None
    fields: tuple["Parameter", ...] = ()
    """Fields of each item of `objects`."""

    @property
    def option(self) -> str:
        """Command-line option."""
        return self.info.option or "--" + self.name.replace("_", "-")

    @property
    def http_name(self) -> str:
        """Name in the HTTP API."""
        return self.info.http_name or self.name

    @property
    def has_images(self) -> bool:
        """Whether values contain images, which travel as frames."""
        return self.kind in ("image", "images") or any(field.has_images for field in self.fields)

    @property
    def default_words(self) -> str | None:
        """Description of the default; None if a value is required."""
        return self.info.unset if self.default is None else f"{self.default}"

    def json_schema(self) -> dict[str, Any]:
        """Return the existing limits by their names in JSON Schema, in snake case."""
        bounds = {
            "minimum": self.minimum,
            "exclusive_minimum": self.exclusive_minimum,
            "maximum": self.maximum,
            "min_length": self.min_length,
            "max_length": self.max_length,
            "pattern": self.pattern,
            "max_items": self.max_items,
            "enum": list(self.choices) or None,
        }
        return {name: bound for name, bound in bounds.items() if bound is not None}


Parameters = Mapping[str, Parameter]
"""Parameters by name, in the order of their declaration."""


def read_parameters(
    struct: type[msgspec.Struct], infos: Mapping[str, ParameterInfo] | None = None
) -> dict[str, Parameter]:
    """Return the parameters that a struct declares. Fields without a `ParameterInfo` are skipped.

    `infos`: the `ParameterInfo` of each field, for a struct whose fields are not annotated. Raises TypeError for a
    type without a `Kind`.
    """
    struct_info = inspect.type_info(struct)
    assert isinstance(struct_info, inspect.StructType)
    hints = get_type_hints(struct, include_extras=True)
    found: dict[str, Parameter] = {}
    for field in struct_info.fields:
        info = _find_info(hints[field.name]) if infos is None else infos.get(field.name)
        if info is None:
            continue
        found[field.name] = Parameter(
            name=field.name,
            info=info,
            required=field.required,
            default=info.default if field.default in (None, msgspec.NODEFAULT) else field.default,
            choices=_choices(hints[field.name]),
            **_shape(f"{struct.__name__}.{field.name}", field.type),
        )
    return found


def _find_info(hint: Any) -> ParameterInfo | None:
    """Return the `ParameterInfo` that annotates a type or a member of its union."""
    for item in getattr(hint, "__metadata__", ()):
        if isinstance(item, ParameterInfo):
            return item
    found = (_find_info(part) for part in get_args(hint))
    return next((info for info in found if info is not None), None)


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the values of a `Literal` in their order; msgspec's description sorts them."""
    if get_origin(hint) is Literal:
        return tuple(str(value) for value in get_args(hint))
    if get_origin(hint) in (list, dict):
        return ()
    return next((found for part in get_args(hint) if (found := _choices(part))), ())


def _shape(where: str, type_: inspect.Type) -> dict[str, Any]:
    """Return the fields of `Parameter` that follow from a type."""
    if isinstance(type_, inspect.UnionType):
        members = [member for member in type_.types if not isinstance(member, inspect.NoneType)]
        if len(members) == 1:
            return _shape(where, members[0])
    match type_:
        case inspect.IntType() | inspect.FloatType():
            kind = "integer" if isinstance(type_, inspect.IntType) else "number"
            return {
                "kind": kind,
                "minimum": type_.ge,
                "exclusive_minimum": type_.gt,
                "maximum": type_.le,
            }
        case inspect.BoolType():
            return {"kind": "boolean"}
        case inspect.StrType(min_length=shortest, max_length=longest, pattern=pattern):
            return {"kind": "string", "min_length": shortest, "max_length": longest, "pattern": pattern}
        case inspect.LiteralType():
            return {"kind": "string"}
        case inspect.DictType():
            return {"kind": "map"}
        case inspect.NoneType():
            return {"kind": "image"}
        case inspect.ListType(item_type=inspect.NoneType(), max_length=most):
            return {"kind": "images", "max_items": most}
        case inspect.ListType(item_type=inspect.StructType(cls=struct), max_length=most):
            return {"kind": "objects", "max_items": most, "fields": tuple(read_parameters(struct).values())}
    raise TypeError(f"{where}: expected a type with a parameter kind, got {type_}")


# ---- images ----------------------------------------------------------------------------------------------


def map_images(
    values: Mapping[str, Any], parameters: Parameters, convert: Callable[[str, Any], Any]
) -> dict[str, Any]:
    """Return parameter values in which each image is replaced by `convert(path, image)`.

    The path of an image is the name of its parameter (`image`), followed by its index in a list (`images[0]`) and
    its field in a struct (`controls[0].image`). A value of a wrong kind is returned unchanged.
    """
    return {
        name: _map(parameters[name], name, value, convert) if name in parameters else value
        for name, value in values.items()
    }


def split_images(values: Mapping[str, Any], parameters: Parameters) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the values for the body, with nil in place of each image, and the images by their paths."""
    images: dict[str, Any] = {}
    body = map_images(values, parameters, images.__setitem__)
    return body, images


def join_images(images: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameter values from images by their paths (`image`, `images[0]`), in the order of their indexes.

    Paths into structs are not supported.
    """
    joined: dict[str, Any] = {}
    for path, image in sorted(images.items(), key=lambda item: _index(item[0])):
        name, bracket, _ = path.partition("[")
        if bracket:
            joined.setdefault(name, []).append(image)
        else:
            joined[name] = image
    return joined


def _index(path: str) -> int:
    return int(path.partition("[")[2].removesuffix("]") or 0)


def _map(parameter: Parameter, path: str, value: Any, convert: Callable[[str, Any], Any]) -> Any:
    if value is None or not parameter.has_images:
        return value
    if parameter.kind == "image":
        return convert(path, value)
    if not isinstance(value, list | tuple):
        return value
    items = [(f"{path}[{index}]", item) for index, item in enumerate(value)]
    if parameter.kind == "images":
        return [convert(at, item) for at, item in items]
    fields = {field.name: field for field in parameter.fields}
    return [
        {
            name: _map(fields[name], f"{at}.{name}", part, convert) if name in fields else part
            for name, part in item.items()
        }
        if isinstance(item, Mapping)
        else item
        for at, item in items
    ]


def image_paths(body: Any, parameters: Parameters) -> Iterator[tuple[str, bool]]:
    """Yield the path of each image that a request can have, and whether it is required. `body`: a struct."""
    for parameter in parameters.values():
        yield from _paths(parameter, parameter.name, getattr(body, parameter.name))


def _paths(parameter: Parameter, path: str, value: Any) -> Iterator[tuple[str, bool]]:
    if parameter.kind == "image":
        yield path, parameter.required
    elif parameter.kind == "images":
        yield from ((f"{path}[{index}]", True) for index in range(len(value or ())))
    elif parameter.has_images:
        for index, item in enumerate(value or ()):
            for field in parameter.fields:
                yield from _paths(field, f"{path}[{index}].{field.name}", getattr(item, field.name))

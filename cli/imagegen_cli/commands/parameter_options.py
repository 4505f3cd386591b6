"""Command-line options derived from the declaration of the request parameters."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from imagegen_common.command_line import IntegerRange, NumberRange
from imagegen_protocol.declaration import Parameter
from imagegen_protocol.parameters import PARAMETERS

F = TypeVar("F", bound=Callable[..., Any])

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_LISTS = {parameter.option: parameter for parameter in PARAMETERS.values() if parameter.kind == "images"}
"""The parameter that gets the values of an option that is given several times, by the option."""


def parameter_options(*names: str, **changes: Mapping[str, Any]) -> Callable[[F], F]:
    """Return a decorator that adds the options of the named parameters; without names, all but the prompt.

    Each option passes its value under the parameter's name; None is the default. A list of images has no option of
    its own: it gets the values if the option of the single image is given several times. `changes`: arguments of
    `click.option` by the name of a parameter, instead of the derived ones.
    """

    def decorate(function: F) -> F:
        for name in reversed(names or [name for name in PARAMETERS if name != "prompt"]):
            if PARAMETERS[name].kind == "images":
                continue
            function = parameter_option(PARAMETERS[name], **changes.get(name, {}))(function)
        return function

    return decorate


def parameter_option(parameter: Parameter, **changes: Any) -> Callable[[F], F]:
    """Return the option of a parameter; `short` in `changes` has further names of it, such as `("-n",)`.

    Raises TypeError for a kind that has no option.
    """
    attributes: dict[str, Any] = {
        "metavar": parameter.info.metavar,
        "help": _help(parameter),
        **_shape(parameter),
        **changes,
    }
    names = [*attributes.pop("short", ()), parameter.option, parameter.name]
    return click.option(*names, **attributes)


def parameter_type(name: str) -> click.ParamType[Any]:
    """Return the type of a parameter's option."""
    found: click.ParamType[Any] = _shape(PARAMETERS[name])["type"]
    return found


def _help(parameter: Parameter) -> str:
    info = parameter.info
    text = info.description.replace("`", "")
    if info.unit and info.unit not in f"{text} {(info.metavar or '').lower()}":
        text += f" In {info.unit}."
    if parameter.kind == "map":
        text += " The value is JSON, such as 2, true, [1, 2] or '\"text\"'."
    if parameter.kind == "image" and parameter.option in _LISTS:
        text += f" Several times: {_LISTS[parameter.option].info.description}"
    if parameter.kind in ("map", "objects"):
        text += " May be given several times."
    words = parameter.default_words
    return text if words in (None, "none") else f"{text}  [default: {words}]"


def _shape(parameter: Parameter) -> dict[str, Any]:
    """Return the arguments of `click.option` that follow from the kind of a parameter."""
    is_open = parameter.exclusive_minimum is not None
    lowest: Any = parameter.exclusive_minimum if is_open else parameter.minimum
    highest: Any = parameter.maximum
    if parameter.choices:
        return {"type": click.Choice(parameter.choices)}
    match parameter.kind:
        case "integer":
            return {"type": IntegerRange(lowest, highest, min_open=is_open)}
        case "number":
            return {"type": NumberRange(lowest, highest, min_open=is_open)}
        case "boolean":
            return {"type": bool}
        case "string":
            return {"type": str}
        case "image" if parameter.option in _LISTS:
            return {"type": _FILE, "multiple": True, "callback": _read_images(_LISTS[parameter.option].name)}
        case "image":
            return {"type": _FILE}
        case "objects" if [field.name for field in parameter.fields] == ["name", "scale"]:
            return {"multiple": True, "callback": _read_scaled_names}
        case "map":
            return {"multiple": True, "callback": _read_map}
    raise TypeError(f"{parameter.name}: there is no option for a parameter of the kind {parameter.kind}")


def _read_images(name: str) -> Callable[[click.Context, click.Parameter, tuple[Path, ...]], Path | None]:
    """Return a callback that passes one file under the option's parameter, and several under `name`."""

    def read(context: click.Context, option: click.Parameter, given: tuple[Path, ...]) -> Path | None:
        context.params[name] = list(given) if len(given) > 1 else None
        return given[0] if len(given) == 1 else None

    return read


def _read_scaled_names(
    context: click.Context, option: click.Parameter, given: tuple[str, ...]
) -> list[dict[str, str | float]] | None:
    """Read values such as `ink:0.8`."""
    found: list[dict[str, str | float]] = []
    for text in given:
        name, colon, scale = text.rpartition(":")
        try:
            found.append({"name": name, "scale": float(scale)} if colon else {"name": text})
        except ValueError as error:
            raise click.BadParameter(f"{text!r}: {scale!r} is not a number") from error
    return found or None


def _read_map(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any] | None:
    """Read values such as `clip_skip=2`; the part after the equals sign is JSON."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE")
        if name in found:
            raise click.BadParameter(f"{name!r} is given twice")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise click.BadParameter(f"{name}: {value!r} is not JSON (text is written '\"so\"')") from error
    return found or None

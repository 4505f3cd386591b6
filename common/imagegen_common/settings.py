"""Settings of a daemon's command. Flags override the environment, which overrides a TOML file and the defaults."""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from imagegen_common.addresses import NotBoundError
from imagegen_common.command_line import OneLineErrors

EXIT_NOT_BOUND = 71
"""Exit status of a daemon whose address is taken or not there yet (EX_OSERR): a later start may succeed."""

F = TypeVar("F", bound=Callable[..., Any])

_ORIGINS = "imagegen_common.settings.origins"
_CHECKED = "imagegen_common.settings.checked"
_KINDS: tuple[tuple[type[click.ParamType[Any]], tuple[type, ...], str], ...] = (
    (click.types.BoolParamType, (bool,), "true or false"),
    (click.types.IntParamType, (int,), "an integer"),
    (click.types.FloatParamType, (int, float), "a number"),
    (click.ParamType, (str,), "a string"),
)
"""Python types of a value in the file, by the type of the option; the first match counts."""


class SettingsCommand(OneLineErrors):
    """A command whose errors name the origin of a wrong value: a line of the file, or a variable."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse as click does. Raises `click.UsageError`."""
        try:
            return super().parse_args(ctx, args)
        except click.BadParameter as error:
            if isinstance(error.param, click.Option):
                place = origin(ctx, error.param)
                if place not in ("default", "flag"):
                    error.param_hint = f"{_key(error.param)} ({place})"
            raise


def settings_options(function: F) -> F:
    """Add `--config` and `--check-config` to a `SettingsCommand`, which calls `end_check` after its own checks."""
    function = click.option(
        "--check-config",
        is_flag=True,
        expose_value=False,
        callback=_remember_check,
        help="Check all settings, print them with their origins, and exit: 0, or 2 if one is wrong.",
    )(function)
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_load,
        help="TOML file with settings; the environment and the command line override it.",
    )(function)


def end_check(context: click.Context) -> None:
    """Print the settings and exit if `--check-config` is given."""
    if context.meta.get(_CHECKED):
        click.echo("\n".join(effective(context)))
        context.exit()


def effective(context: click.Context) -> list[str]:
    """Return a TOML line for each setting, with its origin in a comment."""
    lines = []
    for key, option in options_of(context.command).items():
        value = context.params[option.name or ""]
        text = f"# {key} is not set" if value is None else f"{key} = {_toml(value)}"
        lines.append(f"{text:<48}  # {origin(context, option)}")
    return lines


def options_of(command: click.Command) -> dict[str, click.Option]:
    """Return the options that a file may set, by key: the long name with underscores."""
    return {_key(o): o for o in command.params if isinstance(o, click.Option) and o.expose_value}


def origin(context: click.Context, option: click.Option) -> str:
    """Return the origin of a value: `default`, `file PATH:LINE`, `environment NAME` or `flag`."""
    name = option.name or ""
    source = context.get_parameter_source(name)
    if source is ParameterSource.COMMANDLINE:
        return "flag"
    if source is ParameterSource.DEFAULT_MAP:
        return f"file {_origins(context)[name]}"
    if source is ParameterSource.ENVIRONMENT:
        given = [variable for variable in _variables(context, option) if os.environ.get(variable)]
        return f"environment {given[0]}"
    return "default"


def usage_error(context: click.Context, error: Exception) -> click.UsageError:
    """Return the error that ends the command, with the origins of the options that `error` names."""
    named = dict.fromkeys(re.findall(r"--([a-z][a-z-]*)", str(error)))
    options = options_of(context.command)
    places = {key: origin(context, options[key]) for word in named if (key := word.replace("-", "_")) in options}
    origins = [f"{key}: {place}" for key, place in places.items() if place not in ("default", "flag")]
    kind = _MayPassError if isinstance(error, NotBoundError) and error.may_pass else click.UsageError
    return kind(f"{error} ({', '.join(origins)})" if origins else str(error), context)


class _MayPassError(click.UsageError):
    """The setting is valid; a later start may succeed."""

    exit_code = EXIT_NOT_BOUND


def read_settings(path: Path, command: click.Command, context: click.Context) -> tuple[dict[str, Any], list[str]]:
    """Return the values of a file by the names of the parameters, and its lines.

    Raises `click.UsageError` with file, line and key for a value that can't be used.
    """
    try:
        text = path.read_bytes().decode()
        given = tomllib.loads(text)
    except OSError as error:
        raise click.UsageError(f"--config: can't read {path}: {error.strerror}", context) from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path}: not UTF-8: {error.reason} at byte {error.start}", context) from error
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits
        raise click.UsageError(f"{path}: not TOML: {error}", context) from error
    lines = text.splitlines()
    options = options_of(command)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if (problem := _problem(key, value, options, context)) is not None:
            raise click.UsageError(f"{_place(path, lines, key)}: {problem}", context)
        values[options[key].name or ""] = value
    return values, lines


def _problem(key: str, value: object, options: dict[str, click.Option], context: click.Context) -> str | None:
    """Return the error in one setting of the file; None if it is valid."""
    option = options.get(key)
    if _has_large_integer(value):
        return f"{key}: expected integers of 64 bits"
    if option is None:
        if isinstance(value, dict):
            return f"{key} is a table; settings stand at the top of the file, outside tables"
        near = difflib.get_close_matches(key.lower().replace("-", "_"), options, n=1)
        hint = f"did you mean {near[0]}?" if near else f"settings: {', '.join(options)}"
        return f"{key} is not a setting; {hint}"
    types, words = next((types, words) for kind, types, words in _KINDS if isinstance(option.type, kind))
    if option.multiple:
        if not isinstance(value, list) or any(type(item) not in types for item in value):
            return f"{key} must be a list, each {words}, got {_shown(value)}"
    elif type(value) not in types:
        return f"{key} must be {words}, got {_shown(value)}"
    try:
        option.type_cast_value(context, value)
    except click.BadParameter as error:
        return f"{key}: {error.message}"
    except ValueError as error:  # a path with a null character
        return f"{key}: {error}"
    return None


def _has_large_integer(value: object) -> bool:
    """Return whether a value is or contains an integer beyond the range of TOML, which may be too long to show."""
    if isinstance(value, dict):
        return any(map(_has_large_integer, value.values()))
    if isinstance(value, list):
        return any(map(_has_large_integer, value))
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def _load(context: click.Context, option: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    context.default_map, lines = read_settings(path, context.command, context)
    for key, setting in options_of(context.command).items():
        _origins(context)[setting.name or ""] = _place(path, lines, key)


def _remember_check(context: click.Context, option: click.Parameter, asked: bool) -> None:
    context.meta[_CHECKED] = asked


def _origins(context: click.Context) -> dict[str, str]:
    origins: dict[str, str] = context.meta.setdefault(_ORIGINS, {})
    return origins


def _variables(context: click.Context, option: click.Option) -> list[str]:
    """Return the variables that set an option, in click's order of precedence."""
    own = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    return [*own, f"{context.auto_envvar_prefix}_{(option.name or '').upper()}"]


def _place(path: Path, lines: list[str], key: str) -> str:
    for number, line in enumerate(lines, 1):
        if re.match(rf"\s*\[*\s*[\"']?{re.escape(key)}\b", line):
            return f"{path}:{number}"
    return str(path)


def _key(option: click.Option) -> str:
    return max(option.opts, key=len).removeprefix("--").replace("-", "_")


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(item) for item in value)}]"
    # A path may contain bytes that are not UTF-8.
    return json.dumps(str(value), ensure_ascii=False).encode(errors="backslashreplace").decode()


def _shown(value: object) -> str:
    return _toml(value) if isinstance(value, bool | int | float | list | str) else str(value)

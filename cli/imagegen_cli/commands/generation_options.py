"""The options of `generate` that say more of a drawing: images to start from, scheduler, format, and the rest."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from imagegen_protocol.request import OutputFormat

F = TypeVar("F", bound=Callable[..., Any])

_FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}


def drawing_options(function: F) -> F:
    """Add `image`, `mask_image`, `strength`, `scheduler`, `output_format`, `quality` and `extra`."""
    file = click.Path(exists=True, dir_okay=False, path_type=Path)
    for option in reversed(
        (
            click.option("--image", type=file, metavar="FILE", help="The picture to start from."),
            click.option(
                "--mask",
                "mask_image",
                type=file,
                metavar="FILE",
                help="As large as the image: white is drawn anew, black stays.",
            ),
            click.option(
                "--strength",
                type=click.FloatRange(0, 1, min_open=True),
                help="How far to go from the image.  [default: the model's]",
            ),
            click.option(
                "--scheduler",
                metavar="NAME",
                help="A diffusers class, such as EulerDiscreteScheduler.  [default: the model's]",
            ),
            click.option(
                "--format",
                "output_format",
                type=click.Choice(get_args(OutputFormat)),
                help="How the workers encode the picture.  [default: by the suffix of --out, else png]",
            ),
            click.option("--quality", type=click.IntRange(1, 100), help="Of jpeg and webp.  [default: 90]"),
            click.option(
                "--extra",
                multiple=True,
                metavar="NAME=VALUE",
                callback=_read_extra,
                help="A further parameter of the model's pipeline; the value is JSON, such as 2, true, [1, 2] or "
                "'\"text\"'. May be given several times.",
            ),
        )
    ):
        function = option(function)
    return function


def format_of(name: str | None) -> str | None:
    """Return the format that a file's name asks for, if workers have it."""
    return None if name is None else _FORMATS.get(Path(name).suffix.lower())


def _read_extra(context: click.Context, option: click.Parameter, given: tuple[str, ...]) -> dict[str, Any] | None:
    extra: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r}: expected NAME=VALUE")
        if name in extra:
            raise click.BadParameter(f"{name!r} is given twice")
        try:
            extra[name] = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise click.BadParameter(f"{name}: {value!r} is not JSON (text is written '\"so\"')") from error
    return extra or None

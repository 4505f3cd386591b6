"""Output of lines; every line of the command goes through it, because it may contain text of other peers."""

from typing import IO, Any

import click

from imagegen_protocol.terminal import escape_controls


def echo(text: str, *, label: str = "", err: bool = False, file: IO[Any] | None = None) -> None:
    """Print a line to stdout, or stderr if `err`; `label` comes first and may contain styles of click."""
    click.echo(label + escape_controls(text), err=err, file=file)

"""Errors as the one line that a person reads."""

from typing import IO, Any

import click

from imagegen_protocol import BrokerUnreachableError, ImagegenError

HOW_TO_START = "; start one with imagegen-broker, or say where it is with --broker or IMAGEGEN_FRONTEND"


class InputError(click.ClickException):
    """What was given can't be used: a file of prompts, a name. Nothing has been asked of anybody yet."""

    exit_code = 2

    def __init__(self, what: str, message: str) -> None:
        super().__init__(f"{what}: {message}" if what else message)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line, as it is for other errors."""
        click.echo(f"error: {' '.join(self.format_message().split())}", file=file, err=file is None)


def describe(error: ImagegenError, where: str = "") -> str:
    """Return the line about an error; `where`: which of several prompts it is about."""
    place = f"{where}: " if where else ""
    line = f"error: {error.code}: {place}{' '.join(error.message.split())}"
    if isinstance(error, BrokerUnreachableError):
        line += HOW_TO_START
    if error.retry_after_seconds is not None:
        line += f" (try again in {error.retry_after_seconds:.3g} s)"
    return line

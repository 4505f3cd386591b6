"""Errors as one line on stderr: `error: CODE: MESSAGE`."""

from typing import IO, Any

import click

from imagegen_cli.terminal import echo
from imagegen_protocol import BrokerUnreachableError, ImagegenError

HOW_TO_START = (
    "; start a fleet on this machine with imagegen up, or set the endpoint of a broker with --broker or "
    "IMAGEGEN_FRONTEND"
)


class InputError(click.ClickException):
    """Invalid input, such as a prompt file or an output path; nothing has been sent."""

    exit_code = 2

    def __init__(self, what: str, message: str) -> None:
        super().__init__(f"{what}: {message}" if what else message)

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the error in the format of all other errors."""
        echo(f"error: {' '.join(self.format_message().split())}", file=file, err=file is None)


def describe_warning(warning: str, where: str = "") -> str:
    """Return the line of a warning of a result; `where` names the prompt if there are several."""
    place = f"{where}: " if where else ""
    return f"warning: {place}{' '.join(warning.split())}"


def describe(error: ImagegenError, where: str = "") -> str:
    """Return the line of an error; `where` names the prompt if there are several."""
    place = f"{where}: " if where else ""
    line = f"error: {error.code}: {place}{' '.join(error.message.split())}"
    if isinstance(error, BrokerUnreachableError):
        line += HOW_TO_START
    if error.retry_after_seconds is not None:
        line += f" (retry after {error.retry_after_seconds:.3g} s)"
    return line

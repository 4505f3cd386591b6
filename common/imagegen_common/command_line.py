"""What all commands share: errors in one line, suggestions, and ranges of numbers in words."""

import difflib
import functools
import math
import sys
from collections.abc import Sequence
from typing import Any

import click

_MIN_POWER = 40
"""Numbers beside a power of two from this exponent on are written as powers."""


class OneLineErrors(click.Command):
    """A command whose usage errors are one line on stderr: `error: MESSAGE; see COMMAND --help`."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command as click does; without `standalone_mode`, errors are raised."""
        run = functools.partial(super().main, args, prog_name, complete_var, standalone_mode=False, **extra)
        if not standalone_mode:
            return run()
        try:
            status: Any = run()
        except click.UsageError as error:
            click.echo(f"error: {error_line(error)}", err=True)
            sys.exit(error.exit_code)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort:
            click.echo("error: interrupted", err=True)
            sys.exit(130)
        sys.exit(status if isinstance(status, int) else 0)


def error_line(error: click.UsageError) -> str:
    """Return the text of a usage error, in one line, with the command whose help says more."""
    if isinstance(error, click.BadParameter) and not isinstance(error, click.MissingParameter):
        text = f"{_hint(error)}{error.message}"
    else:
        text = error.format_message()
    text = " ".join(text.split()).removesuffix(".")
    if text[:2].istitle():
        text = text[0].lower() + text[1:]
    return text if error.ctx is None else f"{text}; see {error.ctx.command_path} --help"


def _hint(error: click.BadParameter) -> str:
    hint = error.param_hint
    if hint is None and error.param is not None:
        hint = error.param.get_error_hint(error.ctx)
    hints = [hint] if isinstance(hint, str) else list(hint or ())
    return f"{' / '.join(hints)}: ".replace("'", "") if hints else ""


class SuggestingGroup(click.Group):
    """A group that suggests the names of its commands for a mistyped one."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command. Raises `click.UsageError`."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            names = self.list_commands(ctx)
            near = difflib.get_close_matches(args[0], names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(names)}"
            raise click.UsageError(f"{error.message.removesuffix('.')}; {hint}", ctx) from error


class IntegerRange(click.IntRange):
    """Whole numbers within a range that is described in words."""

    name = "integer"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number. Raises `click.BadParameter`."""
        try:
            number: int = super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"expected a whole number, {self._describe_range()}, got {value!r}", param, ctx)
        return number

    def _describe_range(self) -> str:
        return describe_range(self.min, self.max, min_open=self.min_open)


class NumberRange(click.FloatRange):
    """Finite numbers within a range that is described in words."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Raises `click.BadParameter`."""
        try:
            number: float = super().convert(value, param, ctx)
        except click.BadParameter:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"expected a number, {self._describe_range()}, got {value!r}", param, ctx)
        return number

    def _describe_range(self) -> str:
        return describe_range(self.min, self.max, min_open=self.min_open)


def describe_range(lowest: float | None, highest: float | None, *, min_open: bool = False) -> str:
    """Return a range in words, such as `1 to 1000`, `at least 1` or `above 0, at most 1`."""
    if lowest is not None and highest is not None and not min_open:
        return f"{_number(lowest)} to {_number(highest)}"
    words = []
    if lowest is not None:
        words.append(f"{'above' if min_open else 'at least'} {_number(lowest)}")
    if highest is not None:
        words.append(f"at most {_number(highest)}")
    return ", ".join(words)


def _number(number: float) -> str:
    if isinstance(number, int):
        power = (number + 1).bit_length() - 1
        if power >= _MIN_POWER and number + 1 == 1 << power:
            return f"2^{power} - 1"
        return str(number)
    return str(int(number)) if number == int(number) and abs(number) < 1e15 else repr(number)

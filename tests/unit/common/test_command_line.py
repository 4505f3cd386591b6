"""Errors in one line, suggestions, and ranges of numbers in words."""

import click
import pytest
from click.testing import CliRunner

from imagegen_common.command_line import (
    IntegerRange,
    NumberRange,
    OneLineErrors,
    SuggestingGroup,
    describe_range,
)


@pytest.mark.parametrize(
    ("range_", "words"),
    [
        ((1, 1000), "1 to 1000"),
        ((0, 2**63 - 1), "0 to 2^63 - 1"),
        ((0.5, 100.0), "0.5 to 100"),
        ((1, None), "at least 1"),
        ((None, 9), "at most 9"),
        ((None, None), ""),
    ],
)
def test_a_range_in_words(range_, words):
    assert describe_range(*range_) == words


def test_an_open_range_in_words():
    assert describe_range(0, 1.0, min_open=True) == "above 0, at most 1"
    assert describe_range(0, None, min_open=True) == "above 0"


class Program(OneLineErrors, SuggestingGroup):
    """A group with both."""


@click.group(cls=Program)
def program():
    """Do something."""


@program.command()
@click.option("--count", type=IntegerRange(1))
@click.option("--ratio", type=NumberRange(0, 1))
@click.option("--status", type=int, default=0)
@click.pass_context
def work(context, count, ratio, status):
    """Work."""
    click.echo(f"{count} {ratio}")
    context.exit(status)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            "work --count 0",
            "error: --count: expected a whole number, at least 1, got '0'; see P work --help",
        ),
        (
            "work --count x",
            "error: --count: expected a whole number, at least 1, got 'x'; see P work --help",
        ),
        ("work --ratio nan", "error: --ratio: expected a number, 0 to 1, got 'nan'; see P work --help"),
        ("work --ratio inf", "error: --ratio: expected a number, 0 to 1, got 'inf'; see P work --help"),
        ("wrok", "error: no such command 'wrok'; did you mean work?; see P --help"),
        ("dance", "error: no such command 'dance'; commands: work; see P --help"),
    ],
)
def test_a_usage_error_is_one_line(words, line):
    result = CliRunner().invoke(program, words, prog_name="P")
    assert (result.exit_code, result.stderr) == (2, f"{line}\n")


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_of_a_command_is_kept(status):
    result = CliRunner().invoke(program, f"work --count 2 --status {status}")
    assert (result.exit_code, result.output) == (status, "2 None\n")


def test_the_help_has_ranges_in_words():
    assert "[at least 1]" in CliRunner().invoke(program, "work --help").output


def test_errors_are_raised_without_standalone_mode():
    with pytest.raises(click.UsageError, match="at least 1"):
        program.main(["work", "--count", "0"], standalone_mode=False)

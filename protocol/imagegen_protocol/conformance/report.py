"""Checks, their outcomes, and the table of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

Bench = TypeVar("Bench")


class Violation(Exception):
    """The implementation under test has broken a requirement; the text states what was seen."""


class NotTested(Exception):
    """A requirement could not be tested; the text states why."""


@dataclass(frozen=True, slots=True)
class Check(Generic[Bench]):
    """A check of one requirement; `run` returns what was seen, or raises `Violation` or `NotTested`."""

    requirement: str
    title: str
    run: Callable[[Bench], str]


class Checks(Generic[Bench]):
    """Checks in the order of their definition."""

    def __init__(self) -> None:
        self.all: list[Check[Bench]] = []

    def __call__(self, requirement: str, title: str) -> Callable[[Callable[[Bench], str]], Callable[[Bench], str]]:
        """Return a decorator that adds a check."""

        def add(run: Callable[[Bench], str]) -> Callable[[Bench], str]:
            self.all.append(Check(requirement, title, run))
            return run

        return add


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one check."""

    requirement: str
    title: str
    result: Literal["pass", "fail", "not tested"]
    seen: str


def outcome(check: Check[Bench], bench: Bench) -> Outcome:
    """Run a check and return its outcome."""
    try:
        return Outcome(check.requirement, check.title, "pass", check.run(bench))
    except Violation as violation:
        return Outcome(check.requirement, check.title, "fail", str(violation))
    except NotTested as reason:
        return Outcome(check.requirement, check.title, "not tested", str(reason))


def expect(holds: object, seen: str) -> None:
    """Raise `Violation` unless a condition holds; `seen` describes what was observed instead."""
    if not holds:
        raise Violation(seen)


_HEADER = ("check", "result", "title", "seen")


def table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as a table of text, sorted by requirement."""
    rows = [(each.requirement, each.result, each.title, each.seen) for each in sorted(outcomes, key=_order)]
    widths = [max(len(row[column]) for row in [_HEADER, *rows]) for column in range(3)]
    lines = [_line(row, widths) for row in [_HEADER, *rows]]
    counts = ", ".join(f"{_count(outcomes, result)} {words}" for result, words in _WORDS)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", counts])


_WORDS = (("pass", "passed"), ("fail", "failed"), ("not tested", "not tested"))


def _count(outcomes: Iterable[Outcome], result: str) -> int:
    return sum(each.result == result for each in outcomes)


def _order(each: Outcome) -> tuple[int, ...]:
    return tuple(int(part) for part in each.requirement.removeprefix("R-").split("."))


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
    return "  ".join([*cells, row[-1]]).rstrip()

"""What a check found, and what to do about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """How bad it is; a problem keeps somebody from drawing, a warning may later."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


_RANKS = {status: rank for rank, status in enumerate(Status)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `check`: what was looked at; `remedy`: what to do, "" where that is nothing."""

    check: str
    status: Status
    message: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """Return it as a map of strings."""
        return {"check": self.check, "status": self.status, "message": self.message, "remedy": self.remedy}


def ok(check: str, message: str) -> Finding:
    """Return what is as it should be."""
    return Finding(check, Status.OK, message)


def warning(check: str, message: str, remedy: str) -> Finding:
    """Return what works, and should be looked at."""
    return Finding(check, Status.WARNING, message, remedy)


def problem(check: str, message: str, remedy: str) -> Finding:
    """Return what does not work."""
    return Finding(check, Status.PROBLEM, message, remedy)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of several findings; `ok` of none."""
    return max((finding.status for finding in findings), key=_RANKS.__getitem__, default=Status.OK)


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return findings as JSON has them."""
    found = list(findings)
    return {"status": worst(found), "findings": [finding.as_json() for finding in found]}

"""Findings of checks, with remedies."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Status(StrEnum):
    """Severity: a problem prevents generating images, a warning may become one."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


_RANKS = {status: rank for rank, status in enumerate(Status)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `check`: the subject; `remedy`: what to do, "" if nothing."""

    check: str
    status: Status
    message: str
    remedy: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the finding as a JSON object."""
        return {"check": self.check, "status": self.status, "message": self.message, "remedy": self.remedy}


def ok(check: str, message: str) -> Finding:
    """Return a finding without a problem."""
    return Finding(check, Status.OK, message)


def warning(check: str, message: str, remedy: str) -> Finding:
    """Return a finding that needs attention."""
    return Finding(check, Status.WARNING, message, remedy)


def problem(check: str, message: str, remedy: str) -> Finding:
    """Return a finding of a failure."""
    return Finding(check, Status.PROBLEM, message, remedy)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status of the findings; `ok` without any."""
    return max((finding.status for finding in findings), key=_RANKS.__getitem__, default=Status.OK)


def report(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the JSON report of the findings."""
    found = list(findings)
    return {"status": worst(found), "findings": [finding.as_json() for finding in found]}

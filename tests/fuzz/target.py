"""A fuzz target, and the targets that test the runners themselves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

CORPUS = Path(__file__).with_name("corpus")
"""Inputs that have failed once, in a folder for each target."""


@dataclass(frozen=True, slots=True)
class Target:
    """A function of bytes that raises an exception if the product mishandles them, and valid inputs."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...] = ()
    is_script: bool = False
    """Whether the bytes are choices for `Choices`: all inputs are valid, and longer ones do more."""

    @property
    def regressions(self) -> list[Path]:
        """Files with inputs that have failed once."""
        return sorted((CORPUS / self.name).glob("*"))


def _fail(data: bytes) -> None:
    if data[:4] == b"seed" and data[4:5] > b"x":
        raise ZeroDivisionError("planted")


PLANTED = Target("planted", _fail, (b"seed",))
"""A target with a fault that only a search finds."""
HARMLESS = Target("harmless", len, (b"seed",))
"""A target without a fault."""


def find_target(name: str) -> Target:
    """Return a target by its name."""
    for target in (PLANTED, HARMLESS):
        if target.name == name:
            return target
    from tests.fuzz.targets import TARGETS  # imported late, because it imports all of the product

    return TARGETS[name]

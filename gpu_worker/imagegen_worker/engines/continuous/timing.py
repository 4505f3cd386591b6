"""How long a forward took. Devices that work on their own know it only later, so the question comes apart."""

import time
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """Measures pieces of work that follow each other; seconds on the device."""

    def start(self) -> Any:
        """Return the mark of a piece of work that begins now."""

    def stop(self, mark: Any) -> None:
        """Say that the piece of work has been handed to the device."""

    def seconds(self, mark: Any, *, wait: bool) -> float | None:
        """Return how long it took; None if that is not known yet, which `wait` rules out."""


class WallTimer:
    """For work that is done when the call returns. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def start(self) -> list[float]:
        """Return the mark of a piece of work that begins now."""
        return [self._clock()]

    def stop(self, mark: list[float]) -> None:
        """Say that the piece of work is done."""
        mark.append(self._clock())

    def seconds(self, mark: list[float], *, wait: bool) -> float:
        """Return how long it took."""
        return mark[1] - mark[0]

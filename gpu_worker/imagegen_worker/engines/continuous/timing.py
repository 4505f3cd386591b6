"""Timers of forwards. Some devices run asynchronously, so the time of a forward may be known only later."""

import time
from collections.abc import Callable
from typing import Any, Protocol


class Timer(Protocol):
    """Measures consecutive forwards, in seconds on the device."""

    def start(self) -> Any:
        """Record the start of a forward; return its mark."""

    def stop(self, mark: Any) -> None:
        """Record the end of a forward that was queued on the device."""

    def seconds(self, mark: Any, *, wait: bool) -> float | None:
        """Return the seconds of a forward; None if it has not ended, unless `wait`."""


class WallTimer:
    """A timer for devices whose forwards have ended when the call returns. `clock` in seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock

    def start(self) -> list[float]:
        """Record the start of a forward; return its mark."""
        return [self._clock()]

    def stop(self, mark: list[float]) -> None:
        """Record the end of a forward."""
        mark.append(self._clock())

    def seconds(self, mark: list[float], *, wait: bool) -> float:
        """Return the seconds of a forward."""
        return mark[1] - mark[0]

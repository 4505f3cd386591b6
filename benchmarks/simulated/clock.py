"""Simulated time: what is to happen, in its order."""

import heapq
from collections.abc import Callable
from typing import Any


class Clock:
    """Seconds that pass as fast as the events of them can be worked off."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events = 0
        """How many have happened."""
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._order = 0

    def at(self, when: float, what: Callable[..., object], *arguments: Any) -> None:
        """Call `what` at a time; those of one time are called in the order in which they were asked for."""
        self._order += 1
        heapq.heappush(self._heap, (when, self._order, what, arguments))

    def after(self, seconds: float, what: Callable[..., object], *arguments: Any) -> None:
        """Call `what` after so many seconds."""
        self.at(self.now + seconds, what, *arguments)

    def run(self, *, until: float | None = None, over: Callable[[], bool] = lambda: False) -> None:
        """Let time pass until a moment, or until it is `over`, or nothing is left to happen."""
        heap = self._heap
        while heap and not over():
            if until is not None and heap[0][0] > until:
                self.now = until
                return
            self.now, _, what, arguments = heapq.heappop(heap)
            self.events += 1
            what(*arguments)


class Alarm:
    """Rings once, at the earliest time for which it was set last; asking again for a later time is free."""

    def __init__(self, clock: Clock, ring: Callable[[], float | None]) -> None:
        """`ring` is called when it rings, and returns the time of the next one; None: none."""
        self._clock = clock
        self._ring = ring
        self._set: float | None = None
        self._wanted: float | None = None

    def set(self, when: float | None) -> None:
        """Ring at a time, in place of the one before."""
        self._wanted = when
        if when is not None and (self._set is None or when < self._set):
            self._set = when
            self._clock.at(when, self._come, when)

    def _come(self, when: float) -> None:
        if when != self._set:
            return
        self._set = None
        wanted = self._wanted
        if wanted is not None and wanted <= self._clock.now:
            wanted = self._ring()
        self.set(wanted)

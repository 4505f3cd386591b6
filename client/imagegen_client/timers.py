"""Many timers, one for each key, and the earliest of them in O(log n)."""

import heapq


class Timers:
    """Times (monotonic seconds) by key; setting a key again replaces its time."""

    def __init__(self) -> None:
        self._time: dict[bytes, float] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self._time)

    def set(self, key: bytes, time: float | None) -> None:
        """Set the time of `key`; None removes it."""
        if time is None:
            self._time.pop(key, None)
        elif self._time.get(key) != time:
            self._time[key] = time
            heapq.heappush(self._heap, (time, key))
        # Replaced times stay in the heap until they come up: rebuild it before they outnumber the live ones.
        if len(self._heap) > 2 * len(self._time) + 64:
            self._heap = [(when, owner) for owner, when in self._time.items()]
            heapq.heapify(self._heap)

    def first(self) -> float | None:
        """Return the earliest time, or None without timers."""
        heap = self._heap
        while heap and self._time.get(heap[0][1]) != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def pop_due(self, now: float) -> list[bytes]:
        """Remove and return the keys whose time has come, earliest first."""
        due: list[bytes] = []
        while (first := self.first()) is not None and first <= now:
            key = heapq.heappop(self._heap)[1]
            del self._time[key]
            due.append(key)
        return due

"""Timers by key."""

from imagegen_protocol.lazy_heap import LazyHeap


class Timers:
    """Times (monotonic seconds) by key; setting a key again replaces its time. Each call is O(log n) amortised."""

    def __init__(self) -> None:
        self._time: dict[bytes, float] = {}
        self._heap: LazyHeap[tuple[float, bytes]] = LazyHeap(self._is_set)

    def __len__(self) -> int:
        return len(self._time)

    @property
    def _limit(self) -> int:
        return 64 + 2 * len(self._time)

    @property
    def heap_size(self) -> int:
        """Number of times kept, replaced ones included."""
        return len(self._heap)

    def set(self, key: bytes, time: float | None) -> None:
        """Set the time of `key`; None removes it."""
        if time is None:
            self._time.pop(key, None)
            self._heap.trim(self._limit)
        elif self._time.get(key) != time:
            self._time[key] = time
            self._heap.push((time, key), self._limit)

    def first(self) -> float | None:
        """Return the earliest time, or None without timers."""
        entry = self._heap.first()
        return None if entry is None else entry[0]

    def pop_due(self, now: float) -> list[bytes]:
        """Remove and return the keys whose time has come, earliest first."""
        due: list[bytes] = []
        while (entry := self._heap.first()) is not None and entry[0] <= now:
            key = self._heap.pop()[1]
            del self._time[key]
            due.append(key)
        return due

    def _is_set(self, entry: tuple[float, bytes]) -> bool:
        return self._time.get(entry[1]) == entry[0]

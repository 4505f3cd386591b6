"""A min-heap with lazy deletion: entries that have become stale are dropped when they reach the top."""

import heapq
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
Key = tuple[float, ...]


class LazyHeap(Generic[T]):
    """Items ordered by key. `push` and `peek` are amortised O(log n).

    When the heap has grown to more than twice its last number of current entries, all stale entries are dropped.
    """

    __slots__ = ("_entries", "_is_current", "_limit")

    def __init__(self, is_current: Callable[[T, int], bool]) -> None:
        """`is_current` returns whether the entry of an item with a version still counts."""
        self._is_current = is_current
        self._entries: list[tuple[Key, int, T]] = []
        self._limit = 64

    def __len__(self) -> int:
        """Return the number of entries, stale ones included."""
        return len(self._entries)

    def push(self, key: Key, version: int, item: T) -> None:
        """Add an entry. No two entries of a heap may have both the same key and the same version."""
        heapq.heappush(self._entries, (key, version, item))
        if len(self._entries) > self._limit:
            self._entries = [entry for entry in self._entries if self._is_current(entry[2], entry[1])]
            heapq.heapify(self._entries)
            self._limit = 64 + 2 * len(self._entries)

    def peek(self) -> tuple[Key, T] | None:
        """Return the key and the item of the first current entry, or None if there is none."""
        entries: list[Any] = self._entries
        while entries:
            key, version, item = entries[0]
            if self._is_current(item, version):
                return key, item
            heapq.heappop(entries)
        return None

    def pop(self) -> T:
        """Remove the entry that `peek` returned, and return its item."""
        return heapq.heappop(self._entries)[2]

    def replace(self, key: Key) -> None:
        """Give the entry that `peek` returned another key."""
        _, version, item = self._entries[0]
        heapq.heapreplace(self._entries, (key, version, item))

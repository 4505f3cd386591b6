"""A priority queue whose outdated entries are dropped when they reach the top, or outnumber the others."""

import heapq
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison

E = TypeVar("E", bound="SupportsRichComparison")


class LazyHeap(Generic[E]):
    """A heap of comparable entries, smallest first. `is_live` decides whether an entry still counts."""

    __slots__ = ("_entries", "_is_live")

    def __init__(self, is_live: Callable[[E], bool]) -> None:
        self._entries: list[E] = []
        self._is_live = is_live

    def __len__(self) -> int:
        """Return the number of entries, outdated ones included."""
        return len(self._entries)

    def push(self, entry: E, limit: int) -> None:
        """Add an entry and `trim`, in O(log n)."""
        heapq.heappush(self._entries, entry)
        self.trim(limit)

    def trim(self, limit: int) -> None:
        """Drop the outdated entries if the heap has more than `limit` entries.

        The limit is at least twice the number of live entries, so that the rebuild costs O(1) amortised.
        """
        if len(self._entries) > limit:
            self._entries = list(filter(self._is_live, self._entries))
            heapq.heapify(self._entries)

    def first(self) -> E | None:
        """Return the smallest live entry; None if there is none."""
        entries, is_live = self._entries, self._is_live
        while entries and not is_live(entries[0]):
            heapq.heappop(entries)
        return entries[0] if entries else None

    def smallest(self, count: int) -> list[E]:
        """Return the smallest live entries, at most `count`, in amortised O(count · log n)."""
        found: list[E] = []
        while len(found) < count and (entry := self.first()) is not None:
            found.append(heapq.heappop(self._entries))
        for entry in found:
            heapq.heappush(self._entries, entry)
        return found

    def pop(self) -> E:
        """Remove and return the smallest entry; call it after `first`. Raises `IndexError` if there is none."""
        return heapq.heappop(self._entries)

    def replace_first(self, entry: E) -> None:
        """Put an entry in place of the smallest; call it after `first`. Raises `IndexError` if there is none."""
        heapq.heapreplace(self._entries, entry)

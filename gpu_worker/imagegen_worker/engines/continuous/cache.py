"""A cache with a maximum size in bytes."""

from collections.abc import Hashable
from contextlib import suppress
from operator import itemgetter
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class BoundedCache(Generic[K, V]):
    """Keeps the most recently used values, up to `max_bytes` in all, and counts its hits and misses."""

    def __init__(self, max_bytes: int) -> None:
        self._entries: LRUCache[K, tuple[V, int]] = LRUCache(max_bytes, getsizeof=itemgetter(1))
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return int(self._entries.currsize)

    def get(self, key: K) -> V | None:
        """Return the value of a key; None if there is none."""
        entry = self._entries.get(key)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        return entry[0]

    def put(self, key: K, value: V, nbytes: int) -> None:
        """Keep a value of `nbytes` bytes instead of the least recently used ones, unless it is too large."""
        with suppress(ValueError):  # larger than the whole cache
            self._entries[key] = (value, nbytes)

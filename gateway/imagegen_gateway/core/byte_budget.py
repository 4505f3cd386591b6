"""Limits on the bytes that the requests of one key, and of all keys, hold in memory."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal


@dataclass(slots=True)
class ByteBudget:
    """Bytes held by each key and in total. Only keys that hold bytes are stored."""

    per_key: int
    """Maximum of one key."""
    total: int
    """Maximum of all keys."""
    held: int = 0
    """Bytes held by all keys."""
    _by_key: Counter[str] = field(default_factory=Counter)

    def __getitem__(self, key_id: str) -> int:
        """Return the bytes held by a key."""
        return self._by_key[key_id]

    def take(self, key_id: str, size: int) -> Literal["key", "total"] | None:
        """Take bytes and return None; if they exceed a maximum, take none and return which one."""
        if self._by_key[key_id] + size > self.per_key:
            return "key"
        if self.held + size > self.total:
            return "total"
        self.add(key_id, size)
        return None

    def add(self, key_id: str, size: int) -> None:
        """Count bytes, even if they exceed the maximums."""
        self._by_key[key_id] += size
        self.held += size

    def give_back(self, key_id: str, size: int) -> None:
        """Free bytes that were taken or added before."""
        self.held -= size
        self._by_key[key_id] -= size
        if not self._by_key[key_id]:
            del self._by_key[key_id]

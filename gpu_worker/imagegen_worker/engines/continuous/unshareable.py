"""Kinds of calls that can't share a forward."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from cachetools import FIFOCache

MAX_KEYS = 4096
"""Maximum number of remembered keys; the oldest are forgotten, and tried again."""
FIRST_CALLS = 64
"""Calls that run alone before sharing is tried again; doubled each time that it fails again."""
MAX_CALLS = 16_384
"""Maximum number of such calls."""


@dataclass(slots=True)
class _Entry:
    reason: str
    interval: int
    left: int


class UnshareableKeys:
    """Keys of calls that can't share a forward, and why.

    A failure may be temporary, so each key expires after a number of calls.
    """

    def __init__(self) -> None:
        self._entries: FIFOCache[Hashable, _Entry] = FIFOCache(MAX_KEYS)

    def __contains__(self, key: Hashable) -> bool:
        entry = self._entries.get(key)
        return entry is not None and entry.left > 0

    def __iter__(self) -> Iterator[Hashable]:
        return (key for key in self._entries if key in self)

    def count(self, key: Hashable) -> str | None:
        """Count a call; return the reason why it can't share, or None if it can or may try again."""
        entry = self._entries.get(key)
        if entry is None or entry.left == 0:
            return None
        entry.left -= 1
        return entry.reason

    def add(self, key: Hashable, reason: str) -> None:
        """Record that calls with this key can't share."""
        known = self._entries.get(key)
        interval = FIRST_CALLS if known is None else min(2 * known.interval, MAX_CALLS)
        self._entries[key] = _Entry(reason, interval, interval)

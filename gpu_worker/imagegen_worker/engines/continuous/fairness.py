"""Whose turn it is, when calls of unlike shapes wait for one device."""

from collections.abc import Hashable, Mapping

MAX_GROUPS = 1024
"""Groups remembered; beyond, those that do not wait are forgotten."""


class FairTurns:
    """Start-time fair queueing over groups, by measured seconds.

    Each group has a virtual time that grows by the seconds it was given, divided by its requests; the group with
    the least goes next. So every request gets the same share of the device, whatever the size of its image and
    however large its group. A group that comes back has no claim on the time that it did not use.
    """

    def __init__(self) -> None:
        self._virtual: dict[Hashable, float] = {}
        self._requests: dict[Hashable, int] = {}
        self._now = 0.0

    def choose(self, groups: Mapping[Hashable, int]) -> Hashable:
        """Return the group that goes next; `groups` maps each that waits to its number of requests."""
        for key in groups:
            if key not in self._requests:
                self._virtual[key] = max(self._virtual.get(key, 0.0), self._now)
        self._requests = dict(groups)
        chosen = min(groups, key=self._virtual.__getitem__)  # the first one among equals
        self._now = max(self._now, self._virtual[chosen])
        crowded = len(self._virtual) > MAX_GROUPS
        for key in [
            key for key, at in self._virtual.items() if key not in groups and (crowded or at <= self._now)
        ]:
            del self._virtual[key]
        return chosen

    def charge(self, key: Hashable, seconds: float) -> None:
        """Charge a group with seconds on the device; they may be negative, to correct what was charged before."""
        share = seconds / self._requests.get(key, 1)
        self._virtual[key] = self._virtual.get(key, self._now) + share

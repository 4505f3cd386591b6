"""Fair shares of device time for calls that can't share a forward."""

from collections.abc import Hashable, Mapping

MAX_GROUPS = 1024
"""Number of remembered groups; above it, groups without waiting calls are forgotten."""


class FairQueue:
    """Start-time fair queueing over groups, by measured seconds.

    Each group has a virtual time, which grows by its device seconds divided by its requests; the group with the
    smallest virtual time is next. So every request gets the same share of the device, whatever the size of its
    image and of its group. A group that was idle gets no compensation for the time that it did not use.
    """

    def __init__(self) -> None:
        self._virtual: dict[Hashable, float] = {}
        self._requests: dict[Hashable, int] = {}
        self._now = 0.0

    def choose(self, groups: Mapping[Hashable, int]) -> Hashable:
        """Return the next group; `groups` maps each waiting group to its number of requests."""
        for key in groups:
            if key not in self._requests:
                self._virtual[key] = max(self._virtual.get(key, 0.0), self._now)
        self._requests = dict(groups)
        chosen = min(groups, key=self._virtual.__getitem__)  # the first one among equals
        self._now = max(self._now, self._virtual[chosen])
        too_many = len(self._virtual) > MAX_GROUPS
        for key in [
            key for key, at in self._virtual.items() if key not in groups and (too_many or at <= self._now)
        ]:
            del self._virtual[key]
        return chosen

    def charge(self, key: Hashable, seconds: float) -> None:
        """Charge a group with seconds on the device; negative seconds correct an earlier charge."""
        share = seconds / self._requests.get(key, 1)
        self._virtual[key] = self._virtual.get(key, self._now) + share

"""Turns of groups of calls that can't share a forward: requests that end soon go first, with ageing."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

AGEING = 0.2
"""Device seconds per image that each second since the start of a group's oldest call is worth."""


@dataclass(frozen=True, slots=True)
class WaitingGroup:
    """Calls that can share a forward."""

    images: int
    """Number of images of its calls."""
    remaining_seconds: float
    """Device seconds of the forwards until the first of its calls ends, each shared by the group."""
    age: float
    """Seconds since its oldest call started."""

    @property
    def cost(self) -> float:
        """Device seconds per image until the first one ends, less the worth of its age; the lowest is next."""
        return self.remaining_seconds / self.images - AGEING * self.age


def choose(groups: Mapping[Hashable, WaitingGroup]) -> Hashable:
    """Return the key of the group whose forward is next; the first one among equals.

    No request starves: one that takes S device seconds alone goes before all requests that start more than
    S / `AGEING` seconds after it. So it ends at most S / `AGEING` + S seconds after its start, plus the device
    seconds that the other requests need which run at that time.
    """
    return min(groups, key=lambda key: groups[key].cost)

"""What the all-seeing observer of a fleet writes down: requests, ends, images, and who was in trouble when."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

INTERVAL = 1.0
"""The heartbeat interval of all simulated fleets, in seconds."""
LIVENESS = 3
SKEW = 0.03
SLACK = 0.2
"""Seconds for messages on their way and timers that are late."""
SILENCE = (LIVENESS + 1) * INTERVAL * (1 + 2 * SKEW) + SLACK
"""Seconds, on the world's clock, after which any silent peer has been found dead."""


class Violation(AssertionError):
    """An invariant does not hold; `key` is the request concerned, if it is one."""

    def __init__(self, invariant: str, text: str, key: bytes | None = None) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.key = key
        self.world: Any = None
        """The fleet, as it stood."""


@dataclass(slots=True, eq=False)
class Ask:
    """A request as its client asked for it; `at` is on the client's own clock."""

    key: bytes
    seed: int
    prompt: str
    client: Any
    at: float
    timeout: float | None
    model: str | None
    images: int
    image_bytes: int
    """Size of each image of the answer."""
    inputs: tuple[bytes, ...] = ()
    """Its input images."""
    cancelled: bool = False
    ends: list[Any] = field(default_factory=list)
    makers: list[Any] = field(default_factory=list)
    """The worker processes that made its images, one for each time."""
    begun: list[Any] = field(default_factory=list)
    """The worker processes that began it."""
    first_begun: float = 0.0
    """On the world's clock."""
    made: list[tuple[bytes, ...]] = field(default_factory=list)
    """The images that were made for it, one tuple for each time."""


@dataclass(slots=True)
class Witness:
    """All that invariants are judged by, beside the cores themselves."""

    asks: dict[bytes, Ask] = field(default_factory=dict)
    key_of: dict[bytes, bytes] = field(default_factory=dict)
    """The request of each id on the wire."""
    open: dict[bytes, Ask] = field(default_factory=dict)
    """Requests that have no end yet, and whose client lives."""
    trouble: dict[tuple[str, str], float] = field(default_factory=dict)
    """(dialling process, broker's name) to the last time at which their link lost something, stood, or was cut."""
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    downs: Counter[bytes] = field(default_factory=Counter)
    """How often each worker process was found dead or stuck by some broker."""
    releases: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    """(worker, id) of the RELEASEs on their way."""
    evicted: set[bytes] = field(default_factory=set)
    """Ids whose answers a worker dropped for newer ones: only where the plan lets it hold very few."""
    broker_died: float = -1.0
    """When a broker was killed last."""
    made_twice: int = 0
    messages: int = 0

    def ask_of(self, request_id: bytes) -> Ask | None:
        """Return the request of an id on the wire."""
        return self.asks.get(self.key_of.get(request_id, request_id))

    def link_troubled(self, dialer: str, broker: str, since: float) -> bool:
        """Say whether a link was in trouble at or after `since`."""
        return self.trouble.get((dialer, broker), -1.0) >= since

    def any_link_troubled(self, dialer: str, since: float) -> bool:
        """Say whether any link of a dialling process was in trouble at or after `since`."""
        return any(name == dialer and until >= since for (name, _), until in self.trouble.items())

"""Records of a simulated fleet for the invariants: requests, outcomes, images, and times of faults."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

INTERVAL = 1.0
"""The heartbeat interval of all simulated fleets, in seconds."""
LIVENESS = 3
SKEW = 0.03
SLACK = 0.2
"""Seconds for messages in transit and late timers."""
SILENCE = (LIVENESS + 1) * INTERVAL * (1 + 2 * SKEW) + SLACK
"""Simulated seconds after which every silent peer counts as dead."""


class Violation(AssertionError):
    """An invariant is violated; `key`: the affected request, if there is one."""

    def __init__(self, invariant: str, text: str, key: bytes | None = None) -> None:
        super().__init__(f"{invariant}: {text}")
        self.invariant = invariant
        self.key = key
        self.world: Any = None
        """The fleet at the time of the violation."""


@dataclass(slots=True, eq=False)
class Submission:
    """A request as submitted by its client; `at` is a time of the client's clock."""

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
    submitted_at: float
    """On the world's clock."""
    inputs: tuple[bytes, ...] = ()
    """The input images."""
    cancelled: bool = False
    outcomes: list[Any] = field(default_factory=list)
    generated_by: list[Any] = field(default_factory=list)
    """The worker processes that generated its images, one for each generation."""
    generated_ids: list[bytes] = field(default_factory=list)
    """The id on the wire of each generation."""
    started_by: list[Any] = field(default_factory=list)
    """The worker processes that started it."""
    first_started: float = 0.0
    """On the world's clock."""
    generated: list[tuple[bytes, ...]] = field(default_factory=list)
    """The generated images, one tuple for each generation."""


@dataclass(slots=True)
class FleetRecord:
    """All records that the invariants use, except the cores themselves."""

    submissions: dict[bytes, Submission] = field(default_factory=dict)
    key_of: dict[bytes, bytes] = field(default_factory=dict)
    """The request of each id on the wire."""
    unfinished: dict[bytes, Submission] = field(default_factory=dict)
    """Unfinished requests of live clients."""
    link_faults: dict[tuple[str, str], float] = field(default_factory=dict)
    """Time of the last loss, stall or cut of the link, by names of process and broker."""
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: Counter[bytes] = field(default_factory=Counter)
    """How often brokers counted each worker process as dead or stuck."""
    releases: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    """(worker, id) of the RELEASEs in transit."""
    evicted: set[bytes] = field(default_factory=set)
    """Ids of answers that a worker dropped for newer ones, where the plan sets a low limit."""
    last_broker_kill: float = -1.0
    """Time at which a broker was last killed."""
    generated_twice: int = 0
    messages: int = 0

    def submission_of(self, request_id: bytes) -> Submission | None:
        """Return the request with this id on the wire."""
        return self.submissions.get(self.key_of.get(request_id, request_id))

    def link_had_fault(self, dialer: str, broker: str, since: float) -> bool:
        """Return whether a link had a fault at or after `since`."""
        return self.link_faults.get((dialer, broker), -1.0) >= since

    def any_link_had_fault(self, dialer: str, since: float) -> bool:
        """Return whether any link of a process had a fault at or after `since`."""
        return any(name == dialer and until >= since for (name, _), until in self.link_faults.items())

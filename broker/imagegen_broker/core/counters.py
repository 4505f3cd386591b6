"""Counters, histograms and a smoothed rate, from which metrics and statistics are computed."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

from imagegen_protocol.errors import (
    CancelledError,
    DeadlineExceededError,
    GenerationFailedError,
    InvalidRequestError,
    ModelNotFoundError,
    OutOfMemoryError,
    PoisonRequestError,
    ProtocolError,
)

OUTCOMES = (
    "result",
    InvalidRequestError.code,
    ModelNotFoundError.code,
    DeadlineExceededError.code,
    CancelledError.code,
    PoisonRequestError.code,
    OutOfMemoryError.code,
    GenerationFailedError.code,
    ProtocolError.code,
)
"""Outcomes of requests that are counted by themselves."""
OTHER = "other"
"""Outcome of requests with an error code that this version does not know; a worker may send any."""
BUCKETS = (
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    20.0,
    30.0,
    60.0,
    120.0,
    300.0,
    600.0,
)
"""Upper bounds in seconds."""


class Histogram:
    """Observations counted by bucket, not cumulative; the last bucket has no upper bound."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def copy(self) -> "Histogram":
        """Return an independent copy."""
        copy = Histogram()
        copy.counts = self.counts.copy()
        copy.total = self.total
        return copy


@dataclass(slots=True)
class Counters:
    """Counts since the broker started."""

    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """Rejected requests by error code."""
    answered: Counter[str] = field(default_factory=Counter)
    """Terminal answers of accepted requests: one of `OUTCOMES`, or `OTHER`."""
    acknowledged: int = 0
    abandoned: int = 0
    """Requests dropped because their client left or died."""
    dispatched: int = 0
    attached: int = 0
    """Requests attached to a worker that already held them."""
    requeued: Counter[str] = field(default_factory=Counter)
    """Requeued requests by reason."""
    resent: int = 0
    workers_registered: int = 0
    workers_lost: int = 0
    workers_stuck: int = 0
    clients_lost: int = 0
    received_bytes: int = 0
    """Bytes of input images received in chunks."""
    relayed_bytes: int = 0
    """Bytes of answers relayed in chunks."""
    malformed: int = 0
    dropped: int = 0
    """Messages that could not be sent because the peer had disconnected or was too slow."""
    queue_wait: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)


class Rate:
    """A smoothed rate of events per second, updated once per tick."""

    def __init__(self, smoothing_seconds: float = 20.0) -> None:
        self._smoothing = smoothing_seconds
        self._count = 0
        self._since: float | None = None
        self.per_second = 0.0

    def add(self) -> None:
        """Count one event."""
        self._count += 1

    def tick(self, now: float) -> None:
        """Fold the events since the last tick into the rate."""
        if self._since is not None and now > self._since:
            elapsed = now - self._since
            weight = min(1.0, elapsed / self._smoothing)
            self.per_second += weight * (self._count / elapsed - self.per_second)
            self._count = 0
        self._since = now

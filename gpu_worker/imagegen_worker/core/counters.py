"""Counters since the start of the worker."""

from collections import Counter
from dataclasses import dataclass, field

from imagegen_protocol.messages import WorkerStats
from imagegen_worker.core.events import CallDone, CallFailed


@dataclass(slots=True)
class WorkerCounters:
    """Counters that heartbeats report. Seconds of wall time."""

    requests: int = 0
    failed: int = 0
    calls: int = 0
    batched_requests: int = 0
    images: int = 0
    busy_seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    """Requests by outcome: "result" or an error's code. Exported as a metric, not reported in heartbeats."""

    def add_call(self, call: CallDone) -> None:
        """Count a successful call of the backend."""
        self.calls += 1
        self.batched_requests += call.requests
        self.images += call.images
        self.busy_seconds += call.seconds + call.beside_seconds

    def add_failed_call(self, call: CallFailed) -> None:
        """Count the time of a call that raised."""
        self.busy_seconds += call.seconds

    def to_stats(self) -> WorkerStats:
        """Return the counters in the form that heartbeats carry."""
        return WorkerStats(
            total_requests=self.requests,
            total_failed=self.failed,
            total_batches=self.calls,
            total_batched_requests=self.batched_requests,
            total_images=self.images,
            busy_seconds=self.busy_seconds,
        )

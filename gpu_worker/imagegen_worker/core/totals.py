"""Totals since the worker started."""

from dataclasses import dataclass

from imagegen_protocol.messages import WorkerStats
from imagegen_worker.core.events import CallDone, CallFailed


@dataclass(slots=True)
class Totals:
    """What heartbeats tell brokers, as counters. Seconds of wall time."""

    requests: int = 0
    failed: int = 0
    calls: int = 0
    batched_requests: int = 0
    images: int = 0
    busy_seconds: float = 0.0

    def call_done(self, call: CallDone) -> None:
        """Count a pipeline call that went well."""
        self.calls += 1
        self.batched_requests += call.requests
        self.images += call.images
        self.busy_seconds += call.seconds + call.beside_seconds

    def call_failed(self, call: CallFailed) -> None:
        """Count the time of a call that raised."""
        self.busy_seconds += call.seconds

    def for_wire(self) -> WorkerStats:
        """Return the totals as heartbeats carry them."""
        return WorkerStats(
            total_requests=self.requests,
            total_failed=self.failed,
            total_batches=self.calls,
            total_batched_requests=self.batched_requests,
            total_images=self.images,
            busy_seconds=self.busy_seconds,
        )

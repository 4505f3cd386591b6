"""A suspect request, on which workers died, runs alone on the device."""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer


def suspects_run_alone(worker: "WorkerPeer", batch: list[bytes]) -> None:
    """Check the ids of a batch that starts."""
    for request_id in batch:
        if request_id in worker.alone and len(batch) > 1:
            text = f"{request_id.hex()} shares a batch with {len(batch) - 1} others on {worker.name}"
            raise Violation("suspects_run_alone", text, request_id)

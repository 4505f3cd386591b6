"""A request that may be what took workers down has the device to itself."""

from typing import TYPE_CHECKING

from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.workers import WorkerPeer


def runs_alone(worker: "WorkerPeer", batch: list[bytes]) -> None:
    """Judge a batch that begins, by the ids in it."""
    for request_id in batch:
        if request_id in worker.alone and len(batch) > 1:
            text = f"{request_id.hex()} has {len(batch) - 1} others beside it on {worker.name}"
            raise Violation("runs_alone", text, request_id)

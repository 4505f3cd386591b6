"""No worker exceeds its capacity, neither in its broker's records nor in fact."""

from collections.abc import Set
from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import SILENCE, Violation

if TYPE_CHECKING:
    from imagegen_broker.core.records import Worker
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World


def images_at(worker: "Worker", listed: Set[bytes]) -> int:
    """Return the depth of a worker in images: those of its assigned requests, and one for each other listed id."""
    given = sum(assignment.request.images for assignment in worker.assigned.values())
    return given + len(listed - worker.assigned.keys())


def known_capacity(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
    """Check that with this WORK the unfinished requests known to the broker are within the capacity."""
    record, report = broker.core.workers.by_id.get(worker_id), broker.workers.get(worker_id)
    if record is None or report is None:
        return
    depth = len(record.assigned.keys() | report.active)
    largest = max(assignment.request.images for assignment in record.assigned.values())
    # Attached requests count as one image until then.
    images = 0 if broker.core.table.counters.attached else images_at(record, report.active) - largest
    if depth > record.ready.capacity or images >= record.ready.capacity:
        text = f"{broker.name} gives {report.name} a depth of {depth}, its capacity is {record.ready.capacity}"
        raise Violation("within_capacity", text, world.record.key_of.get(work.request_id))


def true_capacity(world: "World", worker: "WorkerPeer") -> None:
    """Check a worker after each message: with one broker and a lossless link, it never exceeds its capacity."""
    held = worker.core.held
    depth = len(held.queued) + len(held.running)
    if depth <= worker.capacity or world.plan.brokers > 1:
        return
    if not world.record.any_link_had_fault(worker.name, world.now - 2 * SILENCE):
        raise Violation(
            "within_capacity", f"{worker.name} has {depth} requests, its capacity is {worker.capacity}"
        )

"""No worker has more than its capacity: neither by what its broker knows, nor in truth."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.witness import SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World


def known_capacity(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
    """Judge a WORK: with it, what was listed or given, and not seen finished or released, is within bounds."""
    record, told = broker.core.ledger.workers.get(worker_id), broker.workers.get(worker_id)
    if record is None or told is None:
        return
    depth = len(record.assigned.keys() | told.active)
    if depth > record.ready.capacity:
        text = f"{broker.name} gives {told.name} a depth of {depth}, its capacity is {record.ready.capacity}"
        raise Violation("within_capacity", text, world.witness.key_of.get(work.request_id))


def true_capacity(world: "World", worker: "WorkerPeer") -> None:
    """Judge a worker after each message: with one broker, and a link without losses, it is never overfull."""
    held = worker.core.held
    depth = len(held.queued) + len(held.running)
    if depth <= worker.capacity or world.plan.brokers > 1:
        return
    if not world.witness.any_link_troubled(worker.name, world.now - 2 * SILENCE):
        raise Violation(
            "within_capacity", f"{worker.name} has {depth} requests, its capacity is {worker.capacity}"
        )

"""No broker dispatches a request while another live worker holds it, unless a fault is an excuse."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.invariants.excuses import of_the_client, of_the_worker
from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def given_where_held(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
    """Check a WORK against all workers that hold its request; a copy with a RELEASE in transit does not count."""
    request_id = work.request_id
    for holder in world.workers:
        if (
            holder is None
            or not holder.alive
            or holder.id == worker_id
            or holder.core.held.get(request_id) is None
        ):
            continue
        if world.witness.releases[holder.id, request_id] > 0:
            continue
        ask = world.witness.ask_of(request_id)
        if of_the_worker(world, broker, holder) or (ask is not None and of_the_client(world, ask)):
            continue
        text = f"{broker.name} gives {request_id.hex()} to {worker_id.decode()} though {holder.name} has it"
        raise Violation("given_where_held", text, ask.key if ask else None)

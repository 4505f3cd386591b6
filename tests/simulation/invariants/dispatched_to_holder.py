"""No broker dispatches a request while another live worker holds it, unless a fault permits it."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import Violation
from tests.simulation.invariants.permitted_repeats import has_client_fault, has_worker_fault

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def dispatched_to_holder(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
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
        if world.record.releases[holder.id, request_id] > 0:
            continue
        submission = world.record.submission_of(request_id)
        if has_worker_fault(world, broker, holder) or (
            submission is not None and has_client_fault(world, submission)
        ):
            continue
        text = f"{broker.name} dispatches {request_id.hex()} to {worker_id.decode()} though {holder.name} has it"
        raise Violation("dispatched_to_holder", text, submission.key if submission else None)

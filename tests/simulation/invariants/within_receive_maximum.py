"""No request of a client is dispatched while the client is at its maximum of unacknowledged requests."""

from typing import TYPE_CHECKING

from imagegen_broker.core.records import State
from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def within_receive_maximum(broker: "BrokerPeer", work: Work) -> None:
    """Check a WORK against the number of its client's requests that are at workers or unacknowledged."""
    core = broker.core
    client = core.table.requests[work.request_id].client
    states = [request.state for request in client.requests.values()]
    count = states.count(State.DISPATCHED) + states.count(State.DELIVERED)
    capacity = sum(worker.ready.capacity for worker in core.workers.by_id.values())
    most = max(broker.world.plan.max_unacknowledged_per_client, 2 * capacity)
    if count > most:
        text = f"{client.id!r} has {count} requests at workers or unacknowledged, {most} are allowed"
        raise Violation("within_receive_maximum", text, work.request_id)

"""The attempt number of a request grows with each dispatch by a broker."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def attempts_increase(world: "World", broker: "BrokerPeer", work: Work) -> None:
    """Compare a WORK with the previous one of the same request."""
    last = broker.attempts.get(work.request_id, 0)
    request = broker.core.table.requests[work.request_id]
    if work.attempt <= last and request.arrived_at <= broker.dispatched_at.get(work.request_id, 0.0):
        text = f"{broker.name} dispatches {work.request_id.hex()} again as attempt {work.attempt}"
        raise Violation("attempts_increase", text, world.record.key_of.get(work.request_id))
    broker.attempts[work.request_id] = work.attempt
    broker.dispatched_at[work.request_id] = broker.local()

"""A requeued request precedes requests of its model and priority that were never dispatched."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def requeued_first(broker: "BrokerPeer", work: Work) -> None:
    """Check that no requeued request waits when a request is dispatched for the first time.

    Requests whose answer was lost are exempt: they wait for their client's turn.
    """
    core = broker.core
    if work.attempt > 1 or not core.table.counters.requeued:
        return
    request = core.table.requests[work.request_id]
    for waiting in core.scheduler.queue.in_order(request.model):
        if core.scheduler.queue.is_paused(waiting.client.id):
            return  # and so are all after it
        was_returned = waiting.attempt > 0 and waiting.id not in broker.answered
        if was_returned and waiting.priority == request.priority:
            text = f"{request.id.hex()} is dispatched before {waiting.id.hex()}, which was requeued"
            raise Violation("requeued_first", text, waiting.id)

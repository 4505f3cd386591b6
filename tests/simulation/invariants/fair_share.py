"""No client has two turns while another client with requests of equal priority waits."""

from typing import TYPE_CHECKING, Any

from imagegen_broker.core.records import State
from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def fair_share(broker: "BrokerPeer", work: Work) -> None:
    """Check a WORK. Requests that were requeued unfinished use no turn; those whose answer was lost use one."""
    core = broker.core
    request = core.table.requests[work.request_id]
    reasons = _reasons(broker, request)
    if work.attempt > 1 and "answer_lost" not in reasons:
        return
    turns = broker.turns[request.model, request.priority]
    if work.attempt > 1 and reasons != {"answer_lost"}:
        if not request.requeued:  # it was requeued for several reasons, and only the core knows the last one
            turns[request.client.id] = broker.local()
        return
    last = turns.get(request.client.id)
    if last is not None:
        for other in core.clients.by_id.values():
            if other is request.client or turns.get(other.id, -1.0) >= last:
                continue
            if broker.paused_at.get(other.id, -1.0) >= last:
                continue  # the client lost its turn, because it did not acknowledge in time
            for waiting in other.requests.values():
                if (
                    waiting.state is State.QUEUED
                    and waiting.attempt == 0
                    and waiting.previous_client is None  # otherwise it has the position of a new session
                    and (waiting.model, waiting.priority) == (request.model, request.priority)
                    and max(broker.queued_at.get(waiting.id, -1.0), waiting.arrived_at) < last
                ):
                    text = (
                        f"{request.client.id!r} has a second turn while {waiting.id.hex()} of {other.id!r} waits"
                    )
                    raise Violation("fair_share", text, waiting.id)
    turns[request.client.id] = broker.local()


def _reasons(broker: "BrokerPeer", request: Any) -> set[str]:
    """Return the reasons of the requeues of a request since its last dispatch."""
    before = broker.requeues.get(request.id, {})
    broker.requeues[request.id] = dict(request.requeues)
    return {reason for reason, count in request.requeues.items() if count > before.get(reason, 0)}

"""Between clients of equal priority, none has two turns while another one waits."""

from typing import TYPE_CHECKING

from imagegen_broker.core.records import State
from imagegen_protocol.messages import Work
from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def fair_share(broker: "BrokerPeer", work: Work) -> None:
    """Judge a WORK; requests that came back unfinished take no turn, those whose answer was lost do."""
    core = broker.core
    request = core.table.requests[work.request_id]
    # After its answer was lost it may have been found at another worker, and been lost there unfinished.
    is_unfinished = work.request_id not in broker.answered or set(request.requeues) != {"answer_lost"}
    if work.attempt > 1 and is_unfinished:
        return
    turns = broker.turns[request.model, request.priority]
    last = turns.get(request.client.id)
    if last is not None:
        for other in core.clients.by_id.values():
            if other is request.client or turns.get(other.id, -1.0) >= last:
                continue
            if broker.held_at.get(other.id, -1.0) >= last:
                continue  # it lost its turn, as it did not acknowledge in time
            for waiting in other.requests.values():
                if (
                    waiting.state is State.QUEUED
                    and waiting.attempt == 0
                    and waiting.previous_client is None  # else its place is that of a new session
                    and (waiting.model, waiting.priority) == (request.model, request.priority)
                    and broker.queued_at.get(waiting.id, waiting.arrived_at) < last
                ):
                    text = (
                        f"{request.client.id!r} has a second turn while {waiting.id.hex()} of {other.id!r} waits"
                    )
                    raise Violation("fair_share", text, waiting.id)
    turns[request.client.id] = broker.local()

"""No worker loads a model while a worker that has it loaded has room, except that `least-wait` may prefer it."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def warm_first(broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
    """Check a WORK against the room that is left after this round, which was no less before."""
    core = broker.core
    if broker.core.settings.strategy == "least-wait":
        return
    told = broker.workers.get(worker_id)
    chosen = core.workers.by_id[worker_id]
    if told is None or not told.warm or work.model in told.warm:
        return
    given = [assignment.request for assignment in chosen.assigned.values()]
    if any(request.model == work.model and request.id != work.request_id for request in given):
        return  # it is already loading the model
    for other in core.workers.by_id.values():
        knows = broker.workers.get(other.id)
        if knows is not None and other.room and work.model in knows.warm:
            text = f"{broker.name} gives {work.request_id.hex()} to {told.name}, which must load its model"
            raise Violation("warm_first", f"{text}, though {knows.name} has it and room")

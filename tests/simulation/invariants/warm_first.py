"""No worker loads a model while a worker that has it loaded has room, except that `least-wait` may prefer it."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def warm_first(broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
    """Check a WORK against the room that is left after this round, which was no less before."""
    core = broker.core
    if broker.core.settings.strategy == "least-wait":
        return
    report = broker.workers.get(worker_id)
    chosen = core.workers.by_id[worker_id]
    if report is None or not report.warm or work.model in report.warm:
        return
    given = [assignment.request for assignment in chosen.assigned.values()]
    if any(request.model == work.model and request.id != work.request_id for request in given):
        return  # it is already loading the model
    for other in core.workers.by_id.values():
        other_report = broker.workers.get(other.id)
        if other_report is not None and other.room and work.model in other_report.warm:
            text = f"{broker.name} dispatches {work.request_id.hex()} to {report.name}, which must load the model"
            raise Violation("warm_first", f"{text}, though {other_report.name} has it and room")

"""No request waits while a suitable worker has room, except that `least-wait` may leave a slow worker idle."""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import Violation
from tests.simulation.invariants.within_capacity import images_at

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def no_idle_capacity(broker: "BrokerPeer") -> None:
    """Check a broker after a flush."""
    core = broker.core
    waiting = [model for model in core.scheduler.queue.models() if core.scheduler.queue.peek(model) is not None]
    if not waiting or core.settings.strategy == "least-wait" or broker.local() < core.dispatching_from:
        return
    for worker in core.workers.by_id.values():
        report = broker.workers.get(worker.id)
        if report is None or report.draining or worker.stuck or not worker.reachable:
            continue
        load = images_at(worker, report.listed)
        if load < worker.ready.capacity and any(model in worker.ready.models for model in waiting):
            raise Violation("no_idle_capacity", f"requests wait at {broker.name} though {report.name} has room")

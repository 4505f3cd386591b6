"""Requests of a dead or hung worker are elsewhere within 3 intervals after its failure is certain.

Messages that a worker sent before it was killed may arrive afterwards, on a slow link seconds later: the broker
cannot find it dead before it has been silent for the liveness time since the last of them.
"""

from typing import TYPE_CHECKING

from imagegen_broker.core.records import State
from tests.simulation.fleet_record import INTERVAL, LIVENESS, SKEW, SLACK, Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.workers import WorkerPeer
    from tests.simulation.world import World

MOVE_INTERVALS = 3


def requests_leave_failed_workers(world: "World", worker: "WorkerPeer", *, hung: bool) -> None:
    """Check again later: a death is certain after the liveness time, a hang after the step timeout."""
    limit = world.plan.step_timeout
    if hung and (not limit or not worker._batch):
        return
    certain = (limit or 0.0) + INTERVAL if hung else LIVENESS * INTERVAL
    patience = (certain + MOVE_INTERVALS * INTERVAL) * (1 + 2 * SKEW) + SLACK
    if hung and worker.hung_until < world.now + patience:
        return
    for broker in world.brokers:
        record = None if broker is None else broker.core.workers.by_id.get(worker.id)
        if broker is not None and record is not None:
            ids = [i for i in record.assigned if not hung or worker.core.held.get(i) is not None]
            world.after(patience, _check_moved, world, broker, worker, ids, world.now, hung, patience)


def _check_moved(
    world: "World",
    broker: "BrokerPeer",
    worker: "WorkerPeer",
    ids: list[bytes],
    since: float,
    hung: bool,
    patience: float,
) -> None:
    if not broker.alive or broker.last_fault >= since:
        return
    report = broker.workers.get(worker.id)
    if not hung and report is not None and report.last_received + patience > world.now:
        world.at(report.last_received + patience, _check_moved, world, broker, worker, ids, since, hung, patience)
        return
    if hung and (not worker.alive or world.record.link_had_fault(worker.name, broker.address, since)):
        return
    if hung and worker.frozen_until >= since:
        return
    core = broker.core
    for request_id in ids:
        request = core.table.requests.get(request_id)
        if request is None:
            continue
        key = world.record.key_of.get(request_id)
        if request.state is State.DISPATCHED and request.worker is not None and request.worker.id == worker.id:
            raise Violation("requests_leave_failed_workers", f"{request_id.hex()} is still at {worker.name}", key)
        room = any(other.room for other in core.workers.by_id.values() if request.model in other.ready.models)
        is_held = core.scheduler.queue.is_paused(request.client.id)
        if request.state is State.QUEUED and room and not is_held and world.plan.strategy != "least-wait":
            raise Violation(
                "requests_leave_failed_workers",
                f"{request_id.hex()} of {worker.name} waits though there is room",
                key,
            )

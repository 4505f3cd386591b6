"""A broker dispatches nothing to a worker that it knows to be dead, gone, draining or stuck."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import INTERVAL, SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def suitable_workers(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
    """Check a WORK against the worker's last report and its time."""
    report = broker.workers.get(worker_id)
    limit = world.plan.step_timeout
    unfit = None
    if report is None:
        unfit = "dead, gone, or never registered"
    elif report.draining:
        unfit = "draining"
    elif limit and report.step_age is not None and report.step_age > limit:
        unfit = f"stuck, its step is {report.step_age:.1f} s old"
    elif world.now - report.last_received > SILENCE and broker.last_fault < world.now - 2 * INTERVAL:
        unfit = f"silent for {world.now - report.last_received:.1f} s"
    if unfit is not None:
        text = f"{broker.name} dispatches {work.request_id.hex()} to {worker_id.decode()}, which is {unfit}"
        raise Violation("suitable_workers", text, world.record.key_of.get(work.request_id))

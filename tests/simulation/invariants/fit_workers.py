"""A broker dispatches nothing to a worker that it knows to be dead, gone, draining or stuck."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.witness import INTERVAL, SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def fit_workers(world: "World", broker: "BrokerPeer", worker_id: bytes, work: Work) -> None:
    """Check a WORK against the worker's last report and its time."""
    told = broker.workers.get(worker_id)
    limit = world.plan.step_timeout
    unfit = None
    if told is None:
        unfit = "dead, gone, or never registered"
    elif told.draining:
        unfit = "draining"
    elif limit and told.step_age is not None and told.step_age > limit:
        unfit = f"stuck, its step is {told.step_age:.1f} s old"
    elif world.now - told.heard > SILENCE and broker.trouble < world.now - 2 * INTERVAL:
        unfit = f"silent for {world.now - told.heard:.1f} s"
    if unfit is not None:
        text = f"{broker.name} gives {work.request_id.hex()} to {worker_id.decode()}, which is {unfit}"
        raise Violation("fit_workers", text, world.witness.key_of.get(work.request_id))

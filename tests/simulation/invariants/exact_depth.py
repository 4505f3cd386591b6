"""When a fleet is idle, each broker knows the true queue depth of each worker."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


def wrong_depths(world: "World") -> Iterator[str]:
    """Yield the pairs of broker and worker that are not registered or whose depths differ."""
    for broker in world.brokers:
        for worker in world.workers:
            if broker is None or worker is None or not worker.alive:
                yield "a broker or worker is not running"
                continue
            record = broker.core.workers.by_id.get(worker.id)
            true = len(worker.core.held.queued) + len(worker.core.held.running)
            if record is None:
                yield f"{worker.name} is not registered with {broker.name}"
            elif record.depth != true:
                yield f"{broker.name} has depth {record.depth} for {worker.name}, whose depth is {true}"


def exact_depth(world: "World") -> None:
    """Check every pair of broker and worker."""
    wrong = next(wrong_depths(world), None)
    if wrong is not None:
        raise Violation("exact_depth", wrong)

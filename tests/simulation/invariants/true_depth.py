"""Once all is quiet, the depth that each broker knows of each worker is the true one."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


def wrong_depths(world: "World") -> Iterator[str]:
    """Yield each pair of a broker and a worker that do not know each other, or where the depth is wrong."""
    for broker in world.brokers:
        for worker in world.workers:
            if broker is None or worker is None or not worker.alive:
                yield "somebody has not come back yet"
                continue
            record = broker.core.workers.by_id.get(worker.id)
            true = len(worker.core.held.queued) + len(worker.core.held.running)
            if record is None:
                yield f"{worker.name} is not registered with {broker.name}"
            elif record.depth != true:
                yield f"{broker.name} takes the depth of {worker.name} for {record.depth}, it is {true}"


def true_depth(world: "World") -> None:
    """Judge every pair of a broker and a worker."""
    wrong = next(wrong_depths(world), None)
    if wrong is not None:
        raise Violation("true_depth", wrong)

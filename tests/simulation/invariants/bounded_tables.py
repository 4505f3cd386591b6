"""Every table of every core is bounded, at all times."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from imagegen_broker.scheduling.strategies.least_wait import LeastWait
from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def bounded_tables(world: "World", broker: "BrokerPeer") -> None:
    """Check a broker, and all workers and clients."""
    for owner, name, size, most in (*_broker(broker, len(world.workers)), *_workers(world), *_clients(world)):
        if size > most:
            raise Violation("bounded_tables", f"{owner}: {name} holds {size}, at most {most} are allowed")


Size = tuple[str, str, int, int]


def _broker(broker: "BrokerPeer", most_workers: int) -> Iterator[Size]:
    name, core = broker.name, broker.core
    settings, workers = core.settings, len(core.workers.by_id)
    yield name, "requests", len(core.table.requests), settings.max_requests
    yield name, "bytes", core.table.bytes, settings.max_bytes
    yield name, "recent ids", len(core.table.recent_ids), settings.max_recent_ids
    # Entries of ended requests are dropped lazily; requests that were answered and queued again have two.
    yield name, "deadlines", len(core.table.deadlines), 65 + 4 * settings.max_requests
    yield name, "holders", len(core.table.holders), 3 * MAX_IDS_PER_MESSAGE * workers
    yield from _strategy(name, core.scheduler.strategy, workers, most_workers)
    for client in core.clients.by_id.values():
        yield name, "requests of a client", len(client.requests), settings.max_requests_per_client
        yield name, "bytes of a client", client.held_bytes, settings.max_bytes_per_client
        yield name, "missed answers", len(client.missed), len(client.requests)
    for worker in core.workers.by_id.values():
        yield (
            name,
            f"assigned to {worker.name}",
            len(worker.assigned),
            worker.ready.capacity + 2 * MAX_IDS_PER_MESSAGE,
        )


def _strategy(name: str, strategy: Any, workers: int, most_workers: int) -> Iterator[Size]:
    """`most_workers`: maximum number of workers so far, because a heap drops stale entries only when it grows."""
    for key in ("_index", "_idle", "_busy", "_full"):
        if (index := getattr(strategy, key, None)) is not None:
            yield name, f"versions in {key}", len(index._versions), workers
            for model, heap in index._heaps.items():
                yield name, f"entries for {model} in {key}", len(heap), 65 + 2 * most_workers
    if isinstance(strategy, LeastWait):
        yield name, "forecasts", len(strategy._forecasts), workers
        yield name, "groups of workers", len(strategy._groups), workers
        held = sum(len(groups) for groups in strategy._groups.values())
        yield name, "held groups", sum(map(len, strategy._holders.values())), held
        for forecast in strategy._forecasts.values():
            yield name, "requests of a forecast", len(forecast._costs), 4 * MAX_IDS_PER_MESSAGE


def _workers(world: "World") -> Iterator[Size]:
    for worker in world.workers:
        if worker is not None:
            held = worker.core.held
            yield worker.name, "queued", len(held.queued), MAX_IDS_PER_MESSAGE
            yield worker.name, "finished", len(held.finished), world.plan.held_count
            # Running jobs are within the batch size; finished ones have been removed.
            yield worker.name, "job numbers", len(held._ids), len(held.queued) + len(held.running)


def _clients(world: "World") -> Iterator[Size]:
    for client in world.clients:
        core = client.core
        yield client.name, "ids", len(core._pending.by_id), core.unfinished
        yield client.name, "timers", core._pending.timers.heap_size, 65 + 2 * core.unfinished

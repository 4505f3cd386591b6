"""Every table of every core is bounded, at all times."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE
from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def bounded_tables(world: "World", broker: "BrokerPeer") -> None:
    """Judge a broker, and all workers and clients beside it."""
    for owner, name, size, most in (*_broker(broker), *_workers(world), *_clients(world)):
        if size > most:
            raise Violation("bounded_tables", f"{owner}: {name} holds {size}, at most {most} are allowed")


Size = tuple[str, str, int, int]


def _broker(broker: "BrokerPeer") -> Iterator[Size]:
    name, ledger = broker.name, broker.core.ledger
    settings, workers = ledger.settings, len(ledger.workers)
    yield name, "requests", len(ledger.requests), settings.max_requests
    yield name, "bytes", ledger.bytes, settings.max_bytes
    yield name, "tombstones", len(ledger.tombstones), settings.tombstones
    # Entries of requests that have ended are dropped lazily; those that were answered and queued again have two.
    yield name, "deadlines", len(ledger.deadlines), 65 + 4 * settings.max_requests
    yield name, "holders", len(ledger.holders), 3 * MAX_IDS_PER_MESSAGE * workers
    for model, heaps in ledger.placement._heaps.items():
        for heap in heaps:
            yield name, f"places for {model}", len(heap), 64 + 8 * workers + 1
    yield name, "speeds", len(ledger.placement._speeds), workers
    for model, full in ledger.placement._full.items():
        yield name, f"full ones of {model}", len(full), workers
    for client in ledger.clients.values():
        yield name, "requests of a client", len(client.requests), settings.max_requests_per_client
        yield name, "bytes of a client", client.held_bytes, settings.max_bytes_per_client
        yield name, "missed answers", len(client.missed), len(client.requests)
    for worker in ledger.workers.values():
        yield (
            name,
            f"assigned to {worker.name}",
            len(worker.assigned),
            worker.ready.capacity + 2 * MAX_IDS_PER_MESSAGE,
        )


def _workers(world: "World") -> Iterator[Size]:
    for worker in world.workers:
        if worker is not None:
            held = worker.core.held
            yield worker.name, "queued", len(held.queued), MAX_IDS_PER_MESSAGE
            yield worker.name, "finished", len(held.finished), world.plan.held_count
            # Running ones are within the batch; the finished have left.
            yield worker.name, "job numbers", len(held._ids), len(held.queued) + len(held.running)


def _clients(world: "World") -> Iterator[Size]:
    for client in world.clients:
        core = client.core
        yield client.name, "ids", len(core._by_id), core.unfinished
        yield client.name, "timers", core._timers.heap_size, 65 + 2 * core.unfinished

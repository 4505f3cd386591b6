"""When a fleet is idle, every table of every core is empty: nothing leaks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


def remaining_entries(world: "World") -> Iterator[str]:
    """Yield the remaining entries of all tables; recent ids and stale heap entries need only be bounded."""
    for owner, name, table in _tables(world):
        if table:
            yield f"{owner}: {name} holds {table!r}"


def empty_tables(world: "World") -> None:
    """Check all cores."""
    left = next(remaining_entries(world), None)
    if left is not None:
        raise Violation("empty_tables", left)


def _tables(world: "World") -> Iterator[tuple[str, str, Any]]:
    for worker in world.workers:
        if worker is not None:
            held = worker.core.held
            yield worker.name, "queued", held.queued
            yield worker.name, "running", held.running
            yield worker.name, "finished", held.finished
            yield worker.name, "job numbers", held._ids
            yield worker.name, "finished bytes", held.finished_bytes
            receiver = worker.core._requests._receiver
            yield worker.name, "payloads in transit", receiver._receiving
            yield worker.name, "waiting payloads", receiver._waiting
            yield worker.name, "reserved bytes", receiver.reserved_bytes
            for session in worker.core._brokers._sessions:
                yield worker.name, f"downloads from broker {session.index}", len(session.downloads)
    for broker in world.brokers:
        if broker is None:
            continue
        core = broker.core
        yield broker.name, "requests", list(core.table.requests)
        yield broker.name, "queue", len(core.scheduler.queue)
        yield broker.name, "queue levels", core.scheduler.queue._models
        yield broker.name, "followed requests", core.positions.followed
        yield broker.name, "holders", len(core.table.holders)
        yield broker.name, "busy clients", list(core.table.limits._busy_clients)
        yield broker.name, "bytes", core.table.bytes
        yield broker.name, "receiving requests", core.table.receiving
        yield broker.name, "outbox", not core.outbox.is_empty
        for resends, waiting in enumerate(core.table.unacknowledged):
            yield broker.name, f"unacknowledged {resends}", list(waiting)
        for record in core.workers.by_id.values():
            for field in ("assigned", "answers", "foreign", "orphans"):
                yield broker.name, f"{field} of {record.name}", list(getattr(record, field))
        for client in core.clients.by_id.values():
            yield broker.name, "requests of a client", list(client.requests)
            yield broker.name, "missed by a client", list(client.missed)
            yield broker.name, "bytes requested by a client", client.asked_bytes
            yield broker.name, "downloads from a client", len(client.downloads)
    for client in world.clients:
        core = client.core
        yield client.name, "unfinished", core.unfinished
        yield client.name, "ids", list(core._pending.by_id)
        yield client.name, "timers", len(core._pending.timers)
        yield client.name, "acknowledgements", core._receipts._ids
        yield client.name, "downloads", len(core._payloads._downloads)
        yield client.name, "requested bytes", core._payloads._downloads.outstanding

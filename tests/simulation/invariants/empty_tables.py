"""Once all is quiet, every table of every core is empty: nothing leaks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.world import World


def leftovers(world: "World") -> Iterator[str]:
    """Yield what is left in any table; tombstones and lazily dropped heap entries need only be bounded."""
    for owner, name, table in _tables(world):
        if table:
            yield f"{owner}: {name} holds {table!r}"


def empty_tables(world: "World") -> None:
    """Judge all cores."""
    left = next(leftovers(world), None)
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
    for broker in world.brokers:
        if broker is None:
            continue
        ledger = broker.core.ledger
        yield broker.name, "requests", list(ledger.requests)
        yield broker.name, "queue", len(ledger.queue)
        yield broker.name, "queue levels", ledger.queue._models
        yield broker.name, "followed requests", list(ledger.joined) or list(ledger.followed)
        yield broker.name, "holders", list(ledger.holders)
        yield broker.name, "bytes", ledger.bytes
        yield broker.name, "outbox", ledger._outbox or ledger._releases or ledger._resends
        yield broker.name, "joined messages", list(ledger._accepted) or list(ledger._acknowledged)
        yield broker.name, "plans", ledger.placement._plans
        for resends, waiting in enumerate(ledger.unacknowledged):
            yield broker.name, f"unacknowledged {resends}", list(waiting)
        for record in ledger.workers.values():
            for field in ("assigned", "holding", "others", "unclaimed"):
                yield broker.name, f"{field} of {record.name}", list(getattr(record, field))
        for client in ledger.clients.values():
            yield broker.name, "requests of a client", list(client.requests)
            yield broker.name, "missed by a client", list(client.missed)
    for client in world.clients:
        core = client.core
        yield client.name, "unfinished", core.unfinished
        yield client.name, "ids", list(core._pending.by_id)
        yield client.name, "timers", len(core._pending.timers)
        yield client.name, "acknowledgements", core._acks

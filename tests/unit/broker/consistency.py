"""A check that all tables of a broker's core agree with one another."""

from collections import Counter

from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.records import State


def check_consistency(core: BrokerCore) -> None:
    """Raise AssertionError if two tables disagree."""
    table, queue = core.table, core.scheduler.queue
    requests = table.requests.values()
    for request in requests:
        assert request.client.requests[request.id] is request
        if request.state is State.DISPATCHED:
            assert request.worker is not None
            assert request.worker.assigned[request.id].request is request
        if request.state is State.DELIVERED:
            assert request.id in table.unacknowledged[request.resends]
    states = Counter(request.state for request in requests)
    assert len(queue) == states[State.QUEUED]
    assert {request.id for request in queue} <= table.requests.keys()
    assert core.positions.followed == {r.id for r in requests if r.state is State.QUEUED and r.progress}
    assert sum(map(len, table.unacknowledged)) == states[State.DELIVERED]
    assert sum(len(worker.assigned) for worker in core.workers.by_id.values()) == states[State.DISPATCHED]
    assert table.bytes == sum(request.size for request in requests)
    _check_workers(core)
    _check_clients(core)


def _check_workers(core: BrokerCore) -> None:
    workers = core.workers.by_id.values()
    assert core.scheduler.pool.capacity == sum(worker.ready.capacity for worker in workers)
    for worker in workers:
        assigned = [assignment.request for assignment in worker.assigned.values()]
        assert worker.assigned_images == sum(request.images for request in assigned)
        assert worker.assigned_models == Counter(request.model for request in assigned)


def _check_clients(core: BrokerCore) -> None:
    queue, clients = core.scheduler.queue, core.clients.by_id
    least = core.settings.max_unacknowledged_per_client
    assert core.table.limits.maximum == max(least, 2 * core.scheduler.pool.capacity)
    assert sum(len(client.requests) for client in clients.values()) == len(core.table.requests)
    for client in clients.values():
        assert client.held_bytes == sum(request.size for request in client.requests.values())
        assert all(client.requests[request_id].state is State.DELIVERED for request_id in client.missed)
        states = Counter(request.state for request in client.requests.values())
        assert client.unacknowledged == states[State.DISPATCHED] + states[State.DELIVERED]
        is_full = client.unacknowledged >= core.table.limits.maximum_of(client)
        assert queue.is_paused(client.id) == (is_full or client.blocked or not client.is_reachable)
        asked = [r.relay.end - r.relay.position for r in client.requests.values() if r.relay is not None]
        assert client.asked_bytes == sum(asked)
        assert len(client.downloads) == states[State.RECEIVING]
    assert queue.paused_clients == sum(queue.is_paused(client_id) for client_id in clients)

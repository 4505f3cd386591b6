"""A simulated broker process: the real core, a model of its shell, and records for the invariants."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.events import (
    FLUSH,
    ReceivedFromClient,
    ReceivedFromWorker,
    Send,
    SendFailed,
    SendToClient,
)
from imagegen_broker.core.records import Settings, State
from imagegen_protocol.messages import (
    Ack,
    Chunk,
    Error,
    Fetch,
    Goodbye,
    Progress,
    Ready,
    Release,
    Result,
    Work,
    WorkerHeartbeat,
    WorkerReport,
)
from tests.simulation import invariants
from tests.simulation.fleet_record import INTERVAL, LIVENESS
from tests.simulation.network import Link
from tests.simulation.peers import Peer
from tests.simulation.receiving import Receiving

if TYPE_CHECKING:
    from tests.simulation.world import World

MESSAGES_PER_ROUND = 2
"""Messages read from each side per round. A real shell reads more; few make rounds matter in small fleets."""
CHECK_EVERY = 24
"""Rounds between two checks of all tables."""


class LastReport:
    """What a worker has reported to a broker, recorded independently of the core."""

    __slots__ = ("active", "draining", "last_received", "listed", "name", "step_age", "warm")

    def __init__(self, name: str) -> None:
        self.name = name
        self.last_received = 0.0
        """In simulated time."""
        self.draining = False
        self.step_age: float | None = None
        self.listed: frozenset[bytes] = frozenset()
        """Ids queued or running in its last report, and not answered since."""
        self.active: frozenset[bytes] = frozenset()
        """The same ids, without those released since."""
        self.warm: frozenset[str] = frozenset()
        """Loaded models; None: all."""


@dataclass(slots=True, eq=False)
class PendingFetch:
    """A FETCH and its bytes that were not sent yet."""

    fetch: Fetch
    left: int


class BrokerPeer(Peer):
    """One run of a broker process."""

    def __init__(self, world: "World", index: int) -> None:
        self.run = world.runs(f"broker {index}")
        super().__init__(world, f"broker {index}.{self.run}")
        self.index = index
        self.address = f"broker {index}"
        plan = world.plan
        settings = Settings(
            epoch=world.rng.randbytes(16),
            strategy=plan.strategy,
            interval=INTERVAL,
            liveness=LIVENESS,
            max_requests=plan.max_requests,
            max_requests_per_client=plan.max_requests_per_client,
            max_bytes=plan.max_bytes,
            max_bytes_per_client=plan.max_bytes_per_client,
            max_unacknowledged_per_client=plan.max_unacknowledged_per_client,
            fetch_window_bytes=plan.fetch_window_bytes,
            max_transfer_bytes=plan.max_transfer_bytes,
            secret=world.rng.randbytes(16),
            step_timeout=plan.step_timeout,
            max_recent_ids=plan.max_recent_ids,
            default_model="m",
        )
        self.started = world.now
        self.links: dict[bytes, Link] = {}
        """Connections by routing id of the peer."""
        self.core = BrokerCore(settings, self.local())
        self.workers: dict[bytes, LastReport] = {}
        self.clients: dict[bytes, tuple[str, float]] = {}
        """Name of each client, and the time of its last message."""
        self.turns: dict[tuple[str | None, int], dict[bytes, float]] = defaultdict(dict)
        """Time of each client's last turn, by model and priority, to check fair shares; local times."""
        self.paused_at: dict[bytes, float] = {}
        """Time at which each client was last paused; local times."""
        self.requeues: dict[bytes, dict[str, int]] = {}
        """The core's requeue counts of each request at its last dispatch."""
        self.queued_at: dict[bytes, float] = {}
        """Time at which the fetched payload of a request was complete; local times."""
        self.answered: set[bytes] = set()
        """Ids that were answered by a worker and not dispatched again since."""
        self.attempts: dict[bytes, int] = {}
        self.dispatched_at: dict[bytes, float] = {}
        """The last attempt of each dispatched request, and its local time."""
        self.acknowledged: set[bytes] = set()
        self.receiving = Receiving(self)
        self.arrivals: dict[bytes, float] = {}
        """Arrival time of each request whose payload is fetched."""
        self.pending_fetches: dict[bytes, list[PendingFetch]] = defaultdict(list)
        """Unanswered FETCHes of each client."""
        self._flushes = 0
        self._lost = (0, 0)
        self.flush()

    # ---- reading ----------------------------------------------------------------------------------------

    def receive(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        if self.frozen:
            self._inbox.append((self._process, (link, message, frames)))
        else:
            self._process(link, message, frames)
            self.flush()

    def _process(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        dialer, now = link.dialer, self.local()
        if self.world.recording:
            self.world.log_message(f"{dialer.name} -> {self.name}", message)
        if dialer.is_client:
            self.clients[link.id] = (dialer.name, self.world.now)
            if isinstance(message, Ack):
                requests = self.core.table.requests
                self.acknowledged.update(i for i in message.request_ids if i in requests)
            elif isinstance(message, Goodbye):
                self.clients.pop(link.id, None)
            elif isinstance(message, Fetch):
                self.pending_fetches[link.id].append(PendingFetch(message, message.length))
            elif isinstance(message, Chunk) and self._receives(link.id, message.request_id):
                self.receiving.on_chunk(link.id, message, frames)
            self.core.handle(ReceivedFromClient(link.id, message, frames), now)
            if isinstance(message, Chunk):
                self._record_queued(message.request_id)
        else:
            # The core forwards a worker's header unread, so it need not be encoded here.
            self.core.handle(ReceivedFromWorker(dialer.id, message, message, frames), now)
            if isinstance(message, Result | Error):
                request = self.core.table.requests.get(message.request_id)
                if request is not None and request.state is State.DELIVERED:
                    self.answered.add(request.id)
            self._record_worker(dialer, message)

    def _receives(self, client_id: bytes, request_id: bytes) -> bool:
        """Return whether the payload is still fetched; the request may be attached to a worker meanwhile."""
        client = self.core.clients.by_id.get(client_id)
        return client is not None and client.downloads.get(request_id) is not None

    def _record_queued(self, request_id: bytes) -> None:
        request = self.core.table.requests.get(request_id)
        if request is not None and request.state is State.QUEUED:
            self.queued_at.setdefault(request_id, self.local())

    def _record_worker(self, worker: Peer, message: Any) -> None:
        report = self.workers.get(worker.id)
        if isinstance(message, Ready) and report is None and worker.id in self.core.workers.by_id:
            report = self.workers[worker.id] = LastReport(worker.name)
        if report is None:
            return
        report.last_received = self.world.now
        if isinstance(message, Result | Error) and message.request_id in report.active:
            report.active = report.active - {message.request_id}
            report.listed = report.listed - {message.request_id}
        if isinstance(message, WorkerReport):
            report.active = report.listed = frozenset((*message.running, *message.queued))
            report.warm = frozenset(message.warm)
        if isinstance(message, WorkerHeartbeat):
            report.draining, report.step_age = message.state == "draining", message.step_age_seconds
        elif isinstance(message, Error) and message.code == "returned":
            report.draining = True
        elif isinstance(message, Goodbye):
            del self.workers[worker.id]

    def wake(self) -> None:
        """Read the messages that arrived during a freeze: a few of each side per round, peers in turn."""
        sides: tuple[dict[bytes, deque[Any]], ...] = ({}, {})
        while self._inbox:
            _, arguments = self._inbox.popleft()
            sides[arguments[0].dialer.is_client].setdefault(arguments[0].id, deque()).append(arguments)
        while any(sides):
            for side in sides:
                for _ in range(MESSAGES_PER_ROUND):
                    if not side:
                        break
                    peer_id = next(iter(side))
                    waiting = side.pop(peer_id)
                    self._process(*waiting.popleft())
                    if waiting:
                        side[peer_id] = waiting
            self.flush()
        self.flush()

    # ---- flushing and sending ---------------------------------------------------------------------------

    def tick(self) -> None:
        self.flush()

    def next_deadline(self) -> float:
        return self.core.next_deadline()

    def flush(self) -> None:
        """Flush the core; check and send the returned actions."""
        world, core = self.world, self.core
        actions = [action for action in core.handle(FLUSH, self.local()) if isinstance(action, Send)]
        requests = core.table.requests.values()
        self.receiving.keep_only({request.id for request in requests if request.state is State.RECEIVING})
        counters = core.table.counters
        if (counters.workers_lost + counters.workers_stuck, counters.clients_lost) != self._lost:
            self._lost = (counters.workers_lost + counters.workers_stuck, counters.clients_lost)
            self._check_removed_peers()
        self._record_paused()
        invariants.after_flush(world, self)
        for action in actions:
            if isinstance(action.message, Work):
                invariants.on_dispatch(self, action.worker_id, action.message)
                self.answered.discard(action.message.request_id)
            elif isinstance(action.message, Progress) and action.message.state == "queued":
                invariants.on_position(self, action.message)
        for action in actions:
            message = action.message
            if isinstance(action, SendToClient):
                was_sent = self._send(action.client_id, message, action.payload)
            else:
                if isinstance(message, Work):
                    invariants.on_work(world, self, action.worker_id, message)
                was_sent = self._send(action.worker_id, message, action.payload)
                if isinstance(message, Release):
                    if was_sent:
                        world.record.releases.update((action.worker_id, i) for i in message.request_ids)
                    # A message that was not sent makes the worker unreachable until its next report.
                    if (report := self.workers.get(action.worker_id)) is not None:
                        report.active = report.active.difference(message.request_ids)
            if isinstance(message, Error) and message.code == "overloaded":
                invariants.on_overload(world, self, action.client_id, message)
            if not was_sent:
                if world.recording:
                    world.log_message(f"NOT SENT {self.name} -> {self.peer_name(action)}", message)
                core.handle(SendFailed(action), self.local())
        self._record_paused()
        self._flushes += 1
        if self._flushes % CHECK_EVERY == 0:
            invariants.run_periodic_checks(world, self)
        self.arm(core.next_deadline())

    def _record_paused(self) -> None:
        queue = self.core.scheduler.queue
        if queue.paused_clients:
            paused = (client_id for client_id in self.core.clients.by_id if queue.is_paused(client_id))
            self.paused_at.update(dict.fromkeys(paused, self.local()))

    def peer_name(self, action: Any) -> str:
        """Return the name of the peer that an action is for."""
        return (action.client_id if isinstance(action, SendToClient) else action.worker_id).decode()

    def _send(self, peer_id: bytes, message: Any, payload: Sequence[Any]) -> bool:
        link = self.links.get(peer_id)
        if link is not None and link.dialer.is_client:
            invariants.on_message_to_client(self, peer_id, message, payload)
            if isinstance(message, Fetch):
                self._record_fetch(peer_id, message)
        return self.world.network.send_down(self, peer_id, message, payload)

    def _record_fetch(self, client_id: bytes, fetch: Fetch) -> None:
        request = self.core.table.requests.get(fetch.request_id)
        arrived = 0.0 if request is None else request.arrived_at
        if self.arrivals.get(fetch.request_id) != arrived:  # the request was dropped and submitted again
            self.arrivals[fetch.request_id] = arrived
            self.receiving.forget(fetch.request_id, {})
        self.receiving.on_fetch(client_id, fetch)

    def _check_removed_peers(self) -> None:
        core = self.core
        for worker_id, report in list(self.workers.items()):
            record = core.workers.by_id.get(worker_id)
            if record is None:
                del self.workers[worker_id]
                self.world.record.failures[worker_id] += 1
                if self.world.recording:
                    self.world.log(f"{self.name} removes {report.name}")
                invariants.on_peer_removed(self.world, self, report.name, report.last_received)
            elif record.stuck and report.step_age is not None:
                self.world.record.failures[worker_id] += 1
        for client_id, (name, last_received) in list(self.clients.items()):
            if client_id not in core.clients.by_id:
                del self.clients[client_id]
                if self.world.recording:
                    self.world.log(f"{self.name} removes {name}")
                # The session of a replaced socket expires.
                if any(link.id == client_id for link in self.world.network.links.values()):
                    invariants.on_peer_removed(self.world, self, name, last_received)

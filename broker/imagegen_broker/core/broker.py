"""`BrokerCore`: messages and time go in, messages to send come out."""

from collections import Counter

from imagegen_broker.core.backend import Backend
from imagegen_broker.core.frontend import Frontend
from imagegen_broker.core.ledger import Ledger
from imagegen_broker.core.notices import Notices
from imagegen_broker.core.records import (
    Action,
    Moved,
    Note,
    Payload,
    Request,
    Settings,
    State,
    ToClient,
    ToWorker,
    Worker,
)
from imagegen_broker.core.snapshot import View, view
from imagegen_protocol.errors import DeadlineExceededError, ProtocolError, UnauthorizedError
from imagegen_protocol.messages import (
    ClientMessage,
    Error,
    Stats,
    StatsQuery,
    Work,
    WorkerMessage,
)
from imagegen_protocol.statistics import Statistics, to_msgpack


class BrokerCore:
    """The whole broker but its sockets and its clock.

    Feed it messages as they are read, call `settle` once all that was there is read, and send what it returns.
    Call `settle` also when `next_deadline` has come. The same calls with the same times give the same actions.
    """

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self.started = now
        self.ledger = Ledger(settings, now)
        self.frontend = Frontend(self.ledger)
        self.backend = Backend(self.ledger)
        self.notices = Notices(self.ledger)
        self._next_tick = now + settings.interval
        self._dispatches = 0

    # ---- events ---------------------------------------------------------------------------------

    def from_client(self, client_id: bytes, message: ClientMessage, payload: Payload, now: float) -> None:
        """Take a client's message; `client_id` is its routing id."""
        self.frontend.handle(client_id, message, payload, now)
        if isinstance(message, StatsQuery):
            body = to_msgpack(self.statistics(now))
            self.ledger.send(ToClient(client_id, Stats(), [body]))

    def from_worker(
        self, worker_id: bytes, message: WorkerMessage, header: bytes, payload: Payload, now: float
    ) -> None:
        """Take a worker's message; `worker_id` is its routing id, `header` the message as it came."""
        self.backend.handle(worker_id, message, header, payload, now)

    def malformed_from_client(self, client_id: bytes, problem: ProtocolError) -> None:
        """Answer a client's message that did not decode."""
        self.ledger.send(ToClient(client_id, self._complaint(problem)))

    def malformed_from_worker(self, worker_id: bytes, problem: ProtocolError, now: float) -> None:
        """Answer a worker's message that did not decode; it is no sign of life, and no answer comes of it."""
        self.backend.unreadable(worker_id, problem, now)
        self.ledger.send(ToWorker(worker_id, self._complaint(problem)))

    def revoked(self, peer: bytes, role: str, now: float) -> None:
        """Learn that a peer ("clients" or "workers") spoke with a key that is no longer allowed."""
        problem = UnauthorizedError("the broker does not, or no longer, accept this key")
        if role == "clients":
            self.frontend.revoked(peer)
            self.malformed_from_client(peer, problem)
        else:
            self.backend.revoked(peer, now)
            self.malformed_from_worker(peer, problem, now)

    def not_sent(self, action: Action) -> None:
        """Learn that the socket did not take a message: the peer is gone, or reads too slowly."""
        self.ledger.counters.dropped += 1
        if isinstance(action, ToWorker):
            message = action.message
            self.backend.unreachable(action.worker_id, message.request_id if isinstance(message, Work) else None)
        else:
            self.frontend.not_taken(action.client_id, action.answers)

    def _complaint(self, problem: ProtocolError) -> Error:
        self.ledger.counters.malformed += 1
        return Error(code=problem.code, message=problem.message, request_id=problem.request_id)

    # ---- time -----------------------------------------------------------------------------------

    @property
    def dispatching_from(self) -> float:
        """When the grace of a new broker ends."""
        return self.ledger.listening_until

    def next_deadline(self) -> float:
        """Return when `settle` must be called, if no message comes before."""
        soon = [at for at in (self.ledger.deadlines.next(), self.ledger.join_until) if at is not None]
        return min([self._next_tick, *soon])

    def settle(self, now: float) -> list[Action]:
        """Do what time asks for, dispatch, and return everything that is to be sent."""
        for request in self.ledger.deadlines.due(now):
            text = f"timeout_seconds went by after {now - request.arrived:.3f} s; it was {request.state.value}"
            answer = Error(request_id=request.id, code=DeadlineExceededError.code, message=text)
            self.ledger.fail(request, answer, now)
        is_tick = now >= self._next_tick
        if is_tick:
            self._tick(now)
        actions = self.ledger.take_outbox(now)
        if now >= self.dispatching_from:
            self._dispatch(now)
        # What still waits now has a place.
        if is_tick:
            self.notices.tick()
        if self.ledger.joined:
            self.notices.greet()
        return actions + self.ledger.take_outbox(now)

    def _tick(self, now: float) -> None:
        """Once an interval: deaths, heartbeats, and answers that nobody has acknowledged."""
        # A broker that slept may not have read all that came meanwhile: it buries nobody now.
        slept = now - self._next_tick > self.settings.interval
        # The next one is counted from now: a loop that was late must not beat twice at once.
        self._next_tick = now + self.settings.interval
        self.ledger.rate.tick(now)
        self.backend.tick(now, slept=slept)
        self.frontend.tick(now, slept=slept)
        self.frontend.refuse_unknown_models(now)
        for resends, waiting in enumerate(self.ledger.unacknowledged):
            patience = 2 * self.settings.interval * 2**resends
            while waiting:
                request = next(iter(waiting.values()))
                if now - request.delivered < patience:
                    break
                self.frontend.send_answer_again(request, now)

    def take_notes(self) -> list[Note]:
        """Return the lines that are to be logged since the last call."""
        return self.ledger.take_notes()

    def take_moves(self) -> list[Moved]:
        """Return how the states of traced requests have changed since the last call."""
        return self.ledger.take_moves()

    # ---- dispatch -------------------------------------------------------------------------------

    def _dispatch(self, now: float) -> None:
        queue, placement = self.ledger.queue, self.ledger.placement
        for model in queue.models():
            if model is None:
                continue  # no worker has ever registered
            placement.begin(queue.images(model), now)
            while (request := queue.peek(model)) and (worker := placement.choose(model, request.images)):
                self._give(request, worker, now)
        placement.end(queue.waiting)

    def _give(self, request: Request, worker: Worker, now: float) -> None:
        self._dispatches += 1
        worker.last_used = self._dispatches
        worker.dispatches += 1
        self.ledger.counters.dispatched += 1
        self.ledger.counters.queue_wait.observe(now - request.arrived)
        request.attempt += 1
        request.dispatched = now
        self.ledger.assign(request, worker, turn=True)
        left = None if request.deadline is None else max(request.deadline - now, 1e-3)
        work = Work(
            request_id=request.id,
            model=request.model,
            attempt=request.attempt,
            timeout_seconds=left,
            progress=request.progress,
            preview=request.preview,
            traceparent=request.traceparent,
            alone=request.is_suspect(self.settings.max_attempts),
        )
        self.ledger.send(ToWorker(worker.id, work, request.payload))

    # ---- views ----------------------------------------------------------------------------------

    def statistics(self, now: float) -> Statistics:
        """Return the statistics."""
        return self.view(now).statistics()

    def view(self, now: float) -> View:
        """Return what statistics are made of, on whatever thread: a copy."""
        return view(self.ledger, self.started, now)

    def is_ready(self, now: float) -> bool:
        """Say whether requests are dispatched: the grace is over, and some worker is there."""
        return now >= self.dispatching_from and bool(self.ledger.workers)

    def validate(self) -> None:
        """Check that all books agree. Raises AssertionError; for tests and simulations."""
        ledger = self.ledger
        for request in ledger.requests.values():
            assert request.client.requests[request.id] is request
            if request.state is State.DISPATCHED:
                assert request.worker is not None
                assert request.worker.assigned[request.id].request is request
            if request.state is State.DELIVERED:
                assert request.id in ledger.unacknowledged[request.resends]
        states = [request.state for request in ledger.requests.values()]
        assert len(ledger.queue) == states.count(State.QUEUED)
        assert {request.id for request in ledger.queue} <= ledger.requests.keys()
        followers = {r.id for r in ledger.requests.values() if r.state is State.QUEUED and r.progress}
        assert followers == ledger.joined.keys() | ledger.followed.keys()
        assert sum(len(waiting) for waiting in ledger.unacknowledged) == states.count(State.DELIVERED)
        assigned = sum(len(worker.assigned) for worker in ledger.workers.values())
        assert assigned == states.count(State.DISPATCHED)
        for worker in ledger.workers.values():
            assert worker.images == sum(assignment.request.images for assignment in worker.assigned.values())
            assert worker.needed == Counter(assignment.request.model for assignment in worker.assigned.values())
        assert sum(len(client.requests) for client in ledger.clients.values()) == len(ledger.requests)
        assert ledger.bytes == sum(request.size for request in ledger.requests.values())
        for client in ledger.clients.values():
            assert client.held_bytes == sum(request.size for request in client.requests.values())
            assert all(client.requests[request_id].state is State.DELIVERED for request_id in client.missed)
            states = [request.state for request in client.requests.values()]
            assert client.unacknowledged == states.count(State.DISPATCHED) + states.count(State.DELIVERED)
            is_full = client.unacknowledged >= self.settings.max_unacknowledged_per_client
            assert ledger.queue.is_held(client.id) == is_full
        assert ledger.queue.held_clients == sum(ledger.queue.is_held(client_id) for client_id in ledger.clients)

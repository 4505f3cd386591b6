"""`BrokerCore`: events and times go in, actions come out."""

from collections.abc import Iterable
from math import inf

from imagegen_broker.core.admission import Admission
from imagegen_broker.core.client_sessions import ClientSessions
from imagegen_broker.core.counters import Rate
from imagegen_broker.core.events import (
    Action,
    Event,
    Flush,
    KeyRevoked,
    Malformed,
    ReceivedFromClient,
    ReceivedFromWorker,
    Role,
    SendFailed,
    SendToClient,
    SendToWorker,
)
from imagegen_broker.core.outbox import Outbox
from imagegen_broker.core.records import Request, Settings, Worker
from imagegen_broker.core.request_table import RequestTable
from imagegen_broker.core.snapshot import View, view
from imagegen_broker.core.statistics_cache import StatisticsCache
from imagegen_broker.core.transfers import Transfers
from imagegen_broker.core.worker_sessions import WorkerSessions
from imagegen_broker.scheduling.queue_positions import QueuePosition, QueuePositions
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.errors import DeadlineExceededError, ProtocolError, UnauthorizedError
from imagegen_protocol.limits import DEFAULT_INLINE_BYTES, MAX_TIMEOUT_SECONDS
from imagegen_protocol.messages import Error, Progress, Work
from imagegen_protocol.statistics import Statistics, to_msgpack
from imagegen_protocol.transfers import sizes_of


class BrokerCore:
    """The broker without its sockets and its clock. The same events at the same times yield the same actions."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self.started = now
        self.dispatching_from = now + settings.grace
        """End of the grace period: nothing is dispatched before workers had time to report their requests."""
        rate = Rate()
        self.outbox = Outbox(settings.join_seconds)
        self.scheduler = Scheduler(settings.strategy)
        self.positions = QueuePositions(self.scheduler, rate)
        self.table = RequestTable(settings, self.scheduler, self.positions, self.outbox, rate)
        self.transfers = Transfers(self.table, self.outbox)
        statistics = StatisticsCache(lambda at: to_msgpack(self.statistics(at)))
        self.admission = Admission(self.table, self.scheduler, self.dispatching_from)
        self.clients = ClientSessions(
            self.table, self.scheduler, self.outbox, self.transfers, statistics, self.admission
        )
        self.workers = WorkerSessions(self.table, self.scheduler, self.outbox, self.transfers)
        self._next_tick = now + settings.interval
        self._flush_at_once = False
        """Whether something can be done without another message: a send failed, or a client was registered."""

    # ---- events ---------------------------------------------------------------------------------

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle an event. Only `Flush` returns actions: all that were collected since the previous `Flush`."""
        match event:
            case ReceivedFromClient():  # without patterns for its fields, which take longer than attributes
                self.clients.handle(event, now)
            case ReceivedFromWorker():
                self.workers.handle(event.worker_id, event.message, event.header, event.payload, now)
            case Flush():
                return self._flush(now)
            case Malformed(role, peer_id, problem):
                # Such a message does not count as a sign of life.
                if role == "workers":
                    self.workers.malformed(peer_id, problem, now)
                self._send_problem(role, peer_id, problem)
            case KeyRevoked(role, peer_id):
                self._key_revoked(role, peer_id, now)
            case SendFailed(action):
                self._send_failed(action)
        return []

    def _send_problem(self, role: Role, peer_id: bytes, problem: ProtocolError) -> None:
        self.table.counters.malformed += 1
        error = Error(code=problem.code, message=problem.message, request_id=problem.request_id)
        self.outbox.add(SendToClient(peer_id, error) if role == "clients" else SendToWorker(peer_id, error))

    def _key_revoked(self, role: Role, peer_id: bytes, now: float) -> None:
        """Remove a peer whose key is no longer allowed."""
        if role == "clients":
            if (client := self.clients.by_id.get(peer_id)) is not None:
                self.clients.remove(client)
        elif (worker := self.workers.by_id.get(peer_id)) is not None:
            self.workers.remove(worker, now)
        problem = UnauthorizedError("the broker does not, or no longer, accept this key")
        self._send_problem(role, peer_id, problem)

    def _send_failed(self, action: SendToClient | SendToWorker) -> None:
        self.table.counters.dropped += 1
        self._flush_at_once = True
        if isinstance(action, SendToClient):
            self.clients.send_failed(action.client_id, action.message, action.answered_id)
        else:
            self.workers.send_failed(action.worker_id, action.message)

    # ---- time -----------------------------------------------------------------------------------

    def next_deadline(self) -> float:
        """Return the time at which `Flush` must be handled if no message arrives before."""
        if self._flush_at_once:
            return -inf
        deadline = self._next_tick
        for other in (self.table.deadlines.next(), self.outbox.deadline):
            if other is not None and other < deadline:
                deadline = other
        return deadline

    def _flush(self, now: float) -> list[Action]:
        self._flush_at_once = self.clients.begin_flush()
        for request in self.table.deadlines.due(now):
            text = f"timeout_seconds elapsed after {now - request.arrived_at:.3f} s in state {request.state.value}"
            self._exceed_deadline(request, text, now)
        is_tick = now >= self._next_tick
        if is_tick:
            self._tick(now)
        if self.table.fetching:
            self.transfers.flush(now)
        # RELEASE makes room at a worker, and must precede WORK.
        self.outbox.flush(now)
        if now >= self.dispatching_from:
            for request, worker in self.scheduler.assignments(now):
                if (lateness := self._lateness(request, now)) is not None:
                    self._exceed_deadline(request, lateness, now)
                else:
                    self._dispatch(request, worker, now)
        # After dispatching: the remaining requests have their final queue positions.
        if is_tick:
            self._send_positions(self.positions.tick())
        if not self._flush_at_once:
            self._send_positions(self.positions.new())
        return self.outbox.take()

    def _lateness(self, request: Request, now: float) -> str | None:
        """Return why no worker can finish a request before its deadline; None if one might."""
        if request.deadline is None:
            return None
        return self.admission.lateness(request.submit, request.model, request.deadline - now, now)

    def _exceed_deadline(self, request: Request, text: str, now: float) -> None:
        self.table.fail(request, Error(request_id=request.id, code=DeadlineExceededError.code, message=text), now)

    def _tick(self, now: float) -> None:
        """Once an interval: expire dead peers, send heartbeats, and resend unacknowledged answers."""
        # A broker that was suspended may not have read all messages that arrived meanwhile: it expires no peer.
        expire = now - self._next_tick <= self.settings.interval
        # The next tick is counted from now, so that a late loop does not send two heartbeats at once.
        self._next_tick = now + self.settings.interval
        self.table.answer_rate.tick(now)
        self.workers.tick(now, expire=expire)
        self.clients.tick(now, expire=expire)
        self.admission.reject_unknown_models(now)
        self.clients.resend_unacknowledged(now)
        self.transfers.tick(self.clients.by_id, now)

    def _dispatch(self, request: Request, worker: Worker, now: float) -> None:
        self.table.dispatch(request, worker, now)
        submit = request.submit
        is_inline = request.size <= DEFAULT_INLINE_BYTES
        work = Work(
            request_id=request.id,
            model=request.model,
            attempt=request.attempt,
            timeout_seconds=None if request.deadline is None else _seconds_left(request.deadline, now),
            progress=request.progress,
            preview=submit.preview,
            traceparent=submit.traceparent,
            alone=request.is_suspect(self.settings.max_attempts),
            images=request.images,
            shape=submit.shape,
            inline_bytes=submit.inline_bytes,
            frame_bytes=[] if is_inline else sizes_of(request.payload),
        )
        self.outbox.add(SendToWorker(worker.id, work, request.payload if is_inline else ()))

    def _send_positions(self, positions: Iterable[QueuePosition]) -> None:
        for request, position, seconds in positions:
            progress = Progress(
                request_id=request.id,
                attempt=request.attempt + 1,
                state="queued",
                place=position,
                seconds_to_start=None if seconds is None else round(seconds, 1),
            )
            self.outbox.add(SendToClient(request.client.id, progress))

    # ---- views ----------------------------------------------------------------------------------

    def statistics(self, now: float) -> Statistics:
        """Return the statistics."""
        return self.view(now).statistics()

    def view(self, now: float) -> View:
        """Return a copy of the state from which any thread can compute the statistics."""
        return view(self, now)

    def is_ready(self, now: float) -> bool:
        """Return whether requests are dispatched: a worker is registered and the grace period has ended."""
        return now >= self.dispatching_from and bool(self.workers.by_id)


def _seconds_left(deadline: float, now: float) -> float:
    """Return the `timeout_seconds` of WORK. The difference of two rounded times may exceed the maximum."""
    return min(max(deadline - now, 1e-3), MAX_TIMEOUT_SECONDS)

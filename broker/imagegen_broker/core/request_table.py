"""`RequestTable`: every request and its state. All state changes go through it, so its indexes always agree."""

import logging
from collections import OrderedDict

import msgspec

from imagegen_broker.core.counters import OTHER, OUTCOMES, Counters, Rate
from imagegen_broker.core.deadlines import Deadlines
from imagegen_broker.core.events import LogEvent, Payload, SendToClient, StateChange
from imagegen_broker.core.holder_index import HolderIndex
from imagegen_broker.core.outbox import Outbox
from imagegen_broker.core.records import (
    TRANSITIONS,
    Assignment,
    Client,
    Request,
    Settings,
    State,
    Worker,
)
from imagegen_broker.core.requeue_limits import exceeded
from imagegen_broker.core.unacknowledged_limits import UnacknowledgedLimits
from imagegen_broker.scheduling.queue_positions import QueuePositions
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.errors import GenerationFailedError
from imagegen_protocol.messages import Error, Submit
from imagegen_protocol.transfers import Download

_UNACKNOWLEDGED = frozenset({State.DISPATCHED, State.DELIVERED})
"""States that count against a client's maximum of unacknowledged requests."""
_MAX_RESENDS = 5
"""Number of resends up to which the time until the next one is doubled."""


class RequestTable:
    """The state machine of requests, and the indexes of requests by client, worker, state and time."""

    def __init__(
        self, settings: Settings, scheduler: Scheduler, positions: QueuePositions, outbox: Outbox, rate: Rate
    ) -> None:
        self.settings = settings
        self._scheduler = scheduler
        self._positions = positions
        self._outbox = outbox
        self.answer_rate = rate
        self.counters = Counters()
        self.default_model = settings.default_model
        """The model of requests that name none; None while it is not known."""
        self.requests: dict[bytes, Request] = {}
        self.bytes = 0
        """Bytes of all payloads, also of those that have not completely arrived."""
        self.receiving = 0
        """Number of RECEIVING requests."""
        self.fetching: dict[bytes, Client] = {}
        """Clients that may be sent a FETCH for their payloads now."""
        self.unacknowledged = tuple(OrderedDict[bytes, Request]() for _ in range(_MAX_RESENDS + 1))
        """DELIVERED requests by number of resends; within each group, in the order of the last send."""
        self.deadlines = Deadlines()
        self.holders = HolderIndex()
        self.recent_ids: OrderedDict[bytes, bytes] = OrderedDict()
        """Ids of recently finished requests, each with the client that acknowledged it, or b"" if none did."""
        self.limits = UnacknowledgedLimits(settings, scheduler)

    # ---- entering and leaving the table ---------------------------------------------------------

    def add(self, request: Request) -> None:
        """Add a new request: queue it, or attach it to a worker that already holds it."""
        self.requests[request.id] = request
        request.client.add(request)
        self.bytes += request.size
        self.recent_ids.pop(request.id, None)
        self.counters.accepted += 1
        holder = self.holders.orphan_of(request) if request.client.is_reachable else None
        if holder is not None:
            self.attach(request, holder)
        else:
            self._enqueue(request)
        self.deadlines.add(request, len(self.requests))

    def remove(self, request: Request, *, acknowledged: bool) -> None:
        """Remove a request, and send RELEASE to the worker that holds it or its answer."""
        worker, is_answered = request.worker, request.state is State.DELIVERED
        self._transition(request, State.GONE)
        del self.requests[request.id]
        request.client.remove(request)
        self.bytes -= request.size
        self._remember(request.id, request.client.id if acknowledged else b"")
        if worker is not None:
            # An unfinished request occupies the worker; an answer only its memory.
            self._outbox.release(worker.id, request.id, urgent=not is_answered)

    def _remember(self, request_id: bytes, client_id: bytes) -> None:
        self.recent_ids[request_id] = client_id
        self.recent_ids.move_to_end(request_id)
        if len(self.recent_ids) > self.settings.max_recent_ids:
            self.recent_ids.popitem(last=False)

    def transfer(self, request: Request, client: Client) -> None:
        """Make another client the owner of a request."""
        is_queued, is_unacknowledged = request.state is State.QUEUED, request.state in _UNACKNOWLEDGED
        if is_queued:
            self._scheduler.queue.remove(request)
        elif is_unacknowledged:
            self.limits.decrease(request.client)
        request.end_relay()
        request.client.downloads.remove(request.id)
        request.previous_client = request.client
        request.client.remove(request)
        client.add(request)
        if is_queued:
            self._scheduler.push(request, requeued=request.requeued)
        elif is_unacknowledged:
            self.limits.increase(client)
        elif request.state is State.RECEIVING:
            self._fetch_payload(request)

    def resubmit(self, request: Request, submit: Submit) -> None:
        """Update whether the client wants progress and previews, from a repeated SUBMIT."""
        wanted = {"progress": submit.progress, "preview": submit.preview}
        request.submit = msgspec.structs.replace(request.submit, **wanted)
        if request.state is State.QUEUED:
            self._positions.follow(request)

    def set_default_model(self, model: str | None) -> None:
        """Set the default model, and assign it to waiting requests that name no model."""
        self.default_model = model
        for request in list(self._scheduler.queue.in_order(None)):
            self._scheduler.queue.remove(request)
            request.model = model
            self._scheduler.push(request)

    # ---- states ---------------------------------------------------------------------------------

    def _enqueue(self, request: Request, *, requeued: bool = False, first: bool = False) -> None:
        """Move a request to QUEUED (see `FairQueue.push`), or to RECEIVING if its payload is not here."""
        is_new, is_complete = request.state is State.NEW, request.is_complete
        self._transition(request, State.QUEUED if is_complete else State.RECEIVING)
        if not is_new:
            self.deadlines.add(request, len(self.requests))  # its entry may have been dropped when it was answered
        if is_complete:
            self._scheduler.push(request, requeued=requeued, first=first)
            self._positions.follow(request)
        else:
            request.requeued = requeued
            self._fetch_payload(request)

    def _fetch_payload(self, request: Request) -> None:
        """Request the payload, or the missing part of it, from the client."""
        if request.download is None:
            request.download = Download(request.id, request.id, request.submit.frame_bytes)
        request.client.downloads.add(request.download)
        self.fetching[request.client.id] = request.client

    def receive_payload(self, request: Request, frames: Payload) -> None:
        """Queue a request whose payload is complete now."""
        request.payload, request.download = frames, None
        request.model = request.model or self.default_model
        if request.state is State.RECEIVING:
            self._enqueue(request, requeued=request.requeued)

    def requeue(self, request: Request, reason: str, now: float, *, is_death: bool = False) -> None:
        """Requeue a request whose worker or answer was lost; fail it if that has happened too often.

        An unfinished request precedes all requests of its model and priority that were never dispatched. One
        whose answer was lost only moves to the front of its own client's queue, because that client did not
        acknowledge the answer in time. `is_death`: the caller has added this attempt to `deaths`, so it does not
        count towards the limits of `requeues`.
        """
        if not is_death:
            request.requeues[reason] = request.requeues.get(reason, 0) + 1
            if (text := exceeded(request.requeues)) is not None:
                self._give_up(request, text, now)
                return
        self.counters.requeued[reason] += 1
        self.log("request requeued", request, request.worker, reason=reason)
        is_answered = request.state is State.DELIVERED
        self._enqueue(request, requeued=not is_answered, first=is_answered)
        self._attach_copy(request)

    def attach_held(self, client: Client) -> None:
        """Attach the waiting requests of a client that became reachable to the workers that hold them."""
        for request in list(client.requests.values()):
            if request.state in (State.QUEUED, State.RECEIVING):
                self._attach_copy(request)

    def _attach_copy(self, request: Request) -> None:
        """Attach a waiting request to a worker that has a copy of it, which another broker dispatched.

        Requests of an unreachable client are not attached: the client may have moved to the other broker.
        """
        if request.client.is_reachable and (holder := self.holders.copy_of(request)) is not None:
            self.attach(request, holder)

    def _give_up(self, request: Request, text: str, now: float) -> None:
        """End a request that was requeued too often."""
        code = GenerationFailedError.code
        answer = Error(request_id=request.id, code=code, message=text, attempt=max(1, request.attempt))
        if request.state is State.DELIVERED:
            request.answer = answer
            self.send_answer(request, answer)
            self.count_resend(request, now)
        else:
            self.fail(request, answer, now)

    def dispatch(self, request: Request, worker: Worker, now: float) -> None:
        """Move a request to DISPATCHED as a new attempt; its WORK must be sent now."""
        request.attempt += 1
        request.dispatched_at = now
        self.counters.dispatched += 1
        self.counters.queue_wait.observe(now - request.arrived_at)
        worker.dispatches += 1
        worker.last_used = self.counters.dispatched
        self._scheduler.queue.end_turn(request)
        self._assign(request, worker)

    def attach(self, request: Request, worker: Worker) -> None:
        """Move a request to DISPATCHED at a worker that already holds it, and request the answer with RESEND."""
        worker.orphans.discard(request.id)
        self._assign(request, worker)
        request.attempt = max(1, request.attempt)
        request.dispatched_at = request.dispatched_at or request.arrived_at
        self.counters.attached += 1
        self._outbox.resend(worker.id, request.id)

    def _assign(self, request: Request, worker: Worker) -> None:
        self._transition(request, State.DISPATCHED)
        request.worker = worker
        worker.assign(request)
        self._scheduler.worker_changed(worker)

    def deliver(self, request: Request, worker: Worker, outcome: str, now: float) -> None:
        """Move a request to DELIVERED with an answer that the worker holds until it is acknowledged."""
        self._answered(request, worker, outcome, now)
        self.hold_answer(request, worker)

    def hold_answer(self, request: Request, worker: Worker) -> None:
        """Record which worker holds the answer of a DELIVERED request."""
        request.worker = worker
        worker.answers[request.id] = Assignment(request, worker.beat)

    def lose_answer(self, request: Request) -> None:
        """Record that a DELIVERED request's answer was lost; it is requeued unless the client acknowledges."""
        if request.worker is not None:
            del request.worker.answers[request.id]
            request.worker = None

    def drop_answer(self, request: Request) -> None:
        """Like `lose_answer`, for an answer that is gone for good: stop the client from fetching its payload."""
        self.lose_answer(request)
        if request.relay is not None:
            request.end_relay()
            self._outbox.accept(request.client.id, request.id)

    def fail(self, request: Request, answer: Error, now: float) -> None:
        """Move a request to DELIVERED with an error, and send RELEASE to the worker that holds it."""
        worker = request.worker
        self._answered(request, worker, answer.code, now)
        request.answer = answer
        self.send_answer(request, answer)
        if worker is not None:
            self._outbox.release(worker.id, request.id)

    def send_answer(self, request: Request, message: Error | bytes, payload: Payload = ()) -> None:
        """Send a terminal answer, or keep it for later if the client's connection is blocked."""
        client = request.client
        if client.blocked:
            client.missed[request.id] = None
        else:
            self._outbox.answer(SendToClient(client.id, message, payload, request.id))

    def count_resend(self, request: Request, now: float) -> None:
        """Record that an answer was sent again, or requested again from its worker."""
        self.set_resends(request, min(request.resends + 1, _MAX_RESENDS), now)
        self.counters.resent += 1

    def set_resends(self, request: Request, resends: int, now: float) -> None:
        """Set the start and the duration of the wait before the answer of a DELIVERED request is resent."""
        self.unacknowledged[request.resends].pop(request.id)
        request.answered_at, request.resends = now, resends
        self.unacknowledged[resends][request.id] = request

    def _answered(self, request: Request, worker: Worker | None, outcome: str, now: float) -> None:
        if self.settings.log_requests:
            self.log(
                "request answered",
                request,
                worker,
                outcome=outcome,
                queue_seconds=(request.dispatched_at or now) - request.arrived_at,
                total_seconds=now - request.arrived_at,
            )
        self.counters.answered[outcome if outcome in OUTCOMES else OTHER] += 1
        self.counters.duration.observe(now - request.arrived_at)
        self.answer_rate.add()
        if worker is not None and request.worker is worker:
            if outcome == "result":
                self._scheduler.answered(worker, request, now)
            else:
                self._scheduler.observe(worker, now)
        self._transition(request, State.DELIVERED)
        request.answered_at = now
        request.resends = 0
        self.unacknowledged[0][request.id] = request

    def _transition(self, request: Request, state: State) -> None:
        """Change the state, and remove the request from the indexes of the old one."""
        old, worker = request.state, request.worker
        if state not in TRANSITIONS[old]:
            raise RuntimeError(f"request {request.id.hex()} cannot go from {old.value} to {state.value}")
        if self.settings.traces and request.submit.traceparent is not None:
            name = None if worker is None else worker.name
            change = StateChange(request.id, request.submit.traceparent, old, state, request.attempt, name)
            self._outbox.add(change)
        if old is State.QUEUED:
            self._scheduler.queue.remove(request)
            self._positions.unfollow(request)
        elif old is State.RECEIVING:
            self.receiving -= 1
            request.client.downloads.remove(request.id)
        elif old is State.DISPATCHED and worker is not None:
            worker.unassign(request)
            self._scheduler.worker_changed(worker)
        elif old is State.DELIVERED:
            del self.unacknowledged[request.resends][request.id]
            request.client.missed.pop(request.id, None)
            if worker is not None:
                del worker.answers[request.id]
            if request.relay is not None:
                request.end_relay()
            request.answer = request.relay = None
        request.worker = None
        request.state = state
        if state is State.RECEIVING:
            self.receiving += 1
        is_unacknowledged = state in _UNACKNOWLEDGED
        if is_unacknowledged != (old in _UNACKNOWLEDGED):
            (self.limits.increase if is_unacknowledged else self.limits.decrease)(request.client)

    def log(self, text: str, request: Request, worker: Worker | None, **fields: object) -> None:
        """Log an event of a request, if such events are logged."""
        if self.settings.log_requests:
            about: dict[str, object] = {
                "request_id": request.id.hex(),
                "client": request.client.session,
                "attempt": request.attempt,
            }
            if worker is not None:
                about["worker"] = worker.ready.name
            about.update(fields)
            self._outbox.add(LogEvent(logging.INFO, text, about))

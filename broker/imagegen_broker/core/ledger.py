"""The broker's books. Every change of a request's state goes through `Ledger`, so that queue, workers, clients
and placement always agree. What is to be sent gathers in an outbox, joined where the protocol allows it.
"""

import logging
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator

from imagegen_broker.core.attempts import exhausted
from imagegen_broker.core.capabilities import FleetCapabilities
from imagegen_broker.core.counters import Counters, Rate
from imagegen_broker.core.deadlines import Deadlines
from imagegen_broker.core.placement import Placement
from imagegen_broker.core.queue import FairQueue
from imagegen_broker.core.records import (
    TRANSITIONS,
    Action,
    Assignment,
    Client,
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
from imagegen_protocol.errors import GenerationFailedError
from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE
from imagegen_protocol.messages import Accepted, Error, Release, Resend

_UNACKNOWLEDGED = frozenset({State.DISPATCHED, State.DELIVERED})
"""States that count against a client's maximum of unacknowledged requests."""


class Ledger:
    """Requests, clients and workers, and the only code that moves a request from state to state."""

    def __init__(self, settings: Settings, now: float) -> None:
        self.settings = settings
        self.listening_until = now + settings.grace
        """Until then a new broker takes requests, but knows too little to dispatch or to refuse a model."""
        self.queue = FairQueue()
        self.placement = Placement(settings.strategy)
        self.requests: dict[bytes, Request] = {}
        self.clients: dict[bytes, Client] = {}
        self.workers: dict[bytes, Worker] = {}
        self.holders: dict[bytes, dict[bytes, Worker]] = {}
        """The workers that list an id in their last holding, by the ids of both."""
        self.unacknowledged: tuple[OrderedDict[bytes, Request], ...] = tuple(OrderedDict() for _ in range(6))
        """DELIVERED requests by the number of resends; within one, by the time of the last sending."""
        self.deadlines = Deadlines()
        self.tombstones: OrderedDict[bytes, bytes] = OrderedDict()
        """Ids that ended lately, and the client that has the answer; b"": nobody has, it may be asked again."""
        self.bytes = 0
        self.capabilities = FleetCapabilities()
        self.counters = Counters()
        self.rate = Rate()
        self.default_model = settings.default_model
        self.joined: dict[bytes, Request] = {}
        """QUEUED requests whose clients follow them, and have not been told a place yet."""
        self.followed: OrderedDict[bytes, Request] = OrderedDict()
        """Those that have been told one; the one that was looked at longest ago first."""
        self._notes: list[Note] = []
        self._moves: list[Moved] = []
        self._outbox: list[Action] = []
        self._accepted: defaultdict[bytes, dict[bytes, None]] = defaultdict(dict)
        self._acknowledged: defaultdict[bytes, dict[bytes, None]] = defaultdict(dict)
        """Made answers that workers may forget; there is no hurry."""
        self.join_until: float | None = None
        """When what is accepted and acknowledged is told at the latest."""
        self._releases: defaultdict[bytes, list[bytes]] = defaultdict(list)
        self._resends: defaultdict[bytes, list[bytes]] = defaultdict(list)

    # ---- states ---------------------------------------------------------------------------------

    def accept(self, request: Request) -> None:
        """Take a new request in and queue it, or attach it to the worker that holds it already."""
        self.requests[request.id] = request
        request.client.requests[request.id] = request
        request.client.held_bytes += request.size
        self.bytes += request.size
        self.tombstones.pop(request.id, None)
        self.counters.accepted += 1
        for holder in self.holders.get(request.id, {}).values():
            if request.id in holder.unclaimed:
                self.attach(request, holder)
                return
        self.enqueue(request)

    def enqueue(self, request: Request, *, returned: bool = False, first: bool = False) -> None:
        """Put a request into the queue; see `FairQueue.push`."""
        if request.state is State.DELIVERED:
            self.deadlines.add(request, len(self.requests))  # its entry was dropped when it was answered
        self._move(request, State.QUEUED)
        self.queue.push(request, returned=returned, first=first)
        self.follow(request)

    def requeue(self, request: Request, reason: str, now: float, *, is_death: bool = False) -> None:
        """Queue a request again whose worker or answer is gone, or end it if that has happened too often.

        One that its worker did not finish goes before those that never left the queue. One whose answer was lost
        takes its client's turn: it is made again for a client that did not acknowledge it in time.
        `is_death`: it is counted among `deaths` already.
        """
        if not is_death:
            request.returns[reason] = request.returns.get(reason, 0) + 1
            if (text := exhausted(request.returns)) is not None:
                self._give_up(request, text, now)
                return
        self.counters.requeued[reason] += 1
        self.note_request("request queued again", request, request.worker, reason=reason)
        is_made = request.state is State.DELIVERED
        self.enqueue(request, returned=not is_made, first=is_made)

    def _give_up(self, request: Request, text: str, now: float) -> None:
        """End a request that came back too often."""
        code = GenerationFailedError.code
        answer = Error(request_id=request.id, code=code, message=text, attempt=max(1, request.attempt))
        if request.state is not State.DELIVERED:
            self.fail(request, answer, now)
            return
        request.answer = answer
        self.pass_on(request, answer)
        self.sent_again(request, now)

    def follow(self, request: Request) -> None:
        """Have the client of a QUEUED request told how it stands, if it wants to know."""
        self.followed.pop(request.id, None)
        self.joined.pop(request.id, None)
        request.told = None
        if request.progress:
            self.joined[request.id] = request

    def assign(self, request: Request, worker: Worker, *, turn: bool = False) -> None:
        """Book a request on a worker; its WORK or RESEND must go out now. `turn`: it was its client's turn."""
        if turn and request.state is State.QUEUED:
            self.queue.end_turn(request)
        self._move(request, State.DISPATCHED)
        request.worker = worker
        worker.assigned[request.id] = Assignment(request, worker.beat)
        worker.others.discard(request.id)
        worker.images += request.images
        worker.needed[request.model] += 1
        self.placement.update(worker)

    def attach(self, request: Request, worker: Worker) -> None:
        """Bind a request to a worker that already has it, in place of making it twice."""
        worker.unclaimed.discard(request.id)
        self.assign(request, worker)
        request.attempt = max(1, request.attempt)
        request.dispatched = request.dispatched or request.arrived
        self.counters.attached += 1
        self.ask_again(worker, request.id)

    def pass_on(self, request: Request, message: Error | bytes, payload: Payload = ()) -> None:
        """Send a terminal answer, unless the client's connection takes nothing: then it is sent when it does."""
        client = request.client
        if client.blocked:
            client.missed[request.id] = None
            return
        if (accepted := self._accepted.get(client.id)) is not None:
            accepted.pop(request.id, None)
        self.send(ToClient(client.id, message, payload, answers=request.id))

    def deliver(self, request: Request, worker: Worker, outcome: str, now: float) -> None:
        """Book that a worker's terminal answer was sent on; the worker holds it until the acknowledgement."""
        self._delivered(request, worker, outcome, now)
        self.hold(request, worker)

    def hold(self, request: Request, worker: Worker) -> None:
        """Book who holds the answer of a DELIVERED request."""
        request.worker = worker
        worker.holding[request.id] = Assignment(request, worker.beat)

    def fail(self, request: Request, answer: Error, now: float) -> None:
        """End a request with an error of the broker's own, and have a worker that has it forget it."""
        worker = request.worker
        self._delivered(request, worker, answer.code, now)
        request.answer = answer
        self.pass_on(request, answer)
        if worker is not None:
            self.release(worker, request.id)

    def sent_again(self, request: Request, now: float) -> None:
        """Book that a DELIVERED answer was sent once more, or asked for again."""
        self.unacknowledged[request.resends].pop(request.id)
        request.resends = min(request.resends + 1, len(self.unacknowledged) - 1)
        request.delivered = now
        self.unacknowledged[request.resends][request.id] = request
        self.counters.resent += 1

    def _delivered(self, request: Request, worker: Worker | None, outcome: str, now: float) -> None:
        if self.settings.log_requests:
            self.note_request(
                "request answered",
                request,
                worker,
                outcome=outcome,
                queue_seconds=(request.dispatched or now) - request.arrived,
                total_seconds=now - request.arrived,
            )
        self.counters.answered[outcome] += 1
        self.counters.duration.observe(now - request.arrived)
        self.rate.add()
        self._move(request, State.DELIVERED)
        request.delivered = now
        request.resends = 0
        self.unacknowledged[0][request.id] = request

    def forget(self, request: Request, *, acknowledged: bool) -> None:
        """Strike a request off; a worker that has it is told to forget it too."""
        worker, is_made = request.worker, request.state is State.DELIVERED
        self._move(request, State.GONE)
        del self.requests[request.id]
        self._disown(request)
        self.bytes -= request.size
        self._bury(request.id, request.client.id if acknowledged else b"")
        if worker is not None and is_made:
            self._acknowledged[worker.id][request.id] = None
        elif worker is not None:
            self.release(worker, request.id)  # it takes up room, or the device

    def _bury(self, request_id: bytes, client_id: bytes) -> None:
        """Remember an id for a while, so that late copies of it are known for what they are."""
        self.tombstones[request_id] = client_id
        self.tombstones.move_to_end(request_id)
        if len(self.tombstones) > self.settings.tombstones:
            self.tombstones.popitem(last=False)

    def hand_over(self, request: Request, client: Client) -> None:
        """Make another client the owner of a request."""
        queued = request.state is State.QUEUED
        if queued:
            self.queue.remove(request)
        elif request.state in _UNACKNOWLEDGED:
            self._count_unacknowledged(request.client, -1)
        self._disown(request)
        request.client = client
        client.requests[request.id] = request
        client.held_bytes += request.size
        if queued:
            self.queue.push(request, returned=request.returned)
        elif request.state in _UNACKNOWLEDGED:
            self._count_unacknowledged(client, 1)

    def _disown(self, request: Request) -> None:
        client = request.client
        del client.requests[request.id]
        client.missed.pop(request.id, None)
        client.held_bytes -= request.size

    def _move(self, request: Request, state: State) -> None:
        """Leave the old state: take the request out of what it stood in."""
        old = request.state
        if state not in TRANSITIONS[old]:
            raise RuntimeError(f"request {request.id.hex()} can't go from {old.value} to {state.value}")
        if self.settings.traces and request.traceparent is not None:
            name = None if request.worker is None else request.worker.name
            self._moves.append(Moved(request.id, request.traceparent, old, state, request.attempt, name))
        if old is State.QUEUED:
            self.queue.remove(request)
            self.joined.pop(request.id, None)
            self.followed.pop(request.id, None)
        elif old is State.DISPATCHED and request.worker is not None:
            if request.worker.assigned.pop(request.id, None) is not None:
                request.worker.images -= request.images
                needed = request.worker.needed
                needed[request.model] -= 1
                if not needed[request.model]:
                    del needed[request.model]
            self.placement.update(request.worker)
        elif old is State.DELIVERED:
            self.unacknowledged[request.resends].pop(request.id, None)
            request.client.missed.pop(request.id, None)
            if request.worker is not None:
                request.worker.holding.pop(request.id, None)
            request.answer = None
        request.worker = None
        request.state = state
        change = (state in _UNACKNOWLEDGED) - (old in _UNACKNOWLEDGED)
        if change:
            self._count_unacknowledged(request.client, change)

    def _count_unacknowledged(self, client: Client, change: int) -> None:
        """Hold a client out of the dispatch at its maximum of unacknowledged requests, and resume it below."""
        client.unacknowledged += change
        if client.unacknowledged >= self.settings.max_unacknowledged_per_client:
            self.queue.hold(client.id)
        else:
            self.queue.resume(client.id)

    # ---- what workers list ----------------------------------------------------------------------

    def note_listed(self, worker: Worker, listed: frozenset[bytes]) -> None:
        """Book all the ids that a worker lists now; they cost what has changed."""
        for request_id in worker.listed - listed:
            holders = self.holders[request_id]
            del holders[worker.id]
            if not holders:
                del self.holders[request_id]
        for request_id in listed - worker.listed:
            self.holders.setdefault(request_id, {})[worker.id] = worker
        worker.unclaimed &= listed
        worker.listed = listed

    def copy_of(self, request: Request) -> Worker | None:
        """Return a worker that has a copy of a waiting request, and its answer or hope of one."""
        for holder in self.holders.get(request.id, {}).values():
            if request.id in holder.finished or (request.id in holder.others and not holder.stuck):
                return holder
        return None

    # ---- notes ----------------------------------------------------------------------------------

    def note(self, level: int, text: str, **fields: object) -> None:
        """Have a line logged."""
        self._notes.append(Note(level, text, fields))

    def note_request(self, text: str, request: Request, worker: Worker | None, **fields: object) -> None:
        """Have a line on a request logged, if such lines are wanted."""
        if self.settings.log_requests:
            told = {"request_id": request.id.hex(), "client": request.client.session, "attempt": request.attempt}
            if worker is not None:
                told["worker"] = worker.name
            self._notes.append(Note(logging.INFO, text, told | fields))

    def take_notes(self) -> list[Note]:
        """Return what is to be logged, in order, and start afresh."""
        notes, self._notes = self._notes, []
        return notes

    def take_moves(self) -> list[Moved]:
        """Return the changes of state of traced requests, in order, and start afresh."""
        moves, self._moves = self._moves, []
        return moves

    # ---- outbox ---------------------------------------------------------------------------------

    def send(self, action: Action) -> None:
        """Send a message of its own."""
        self._outbox.append(action)

    def confirm(self, client_id: bytes, request_id: bytes) -> None:
        """Tell a client soon that a request is accepted (joined), unless its answer is quicker."""
        self._accepted[client_id][request_id] = None

    def release(self, worker: Worker, request_id: bytes) -> None:
        """Have a worker forget an id (joined)."""
        is_told_soon = request_id in self._acknowledged.get(worker.id, ())
        if self.workers.get(worker.id) is worker and not is_told_soon:
            self._releases[worker.id].append(request_id)

    def ask_again(self, worker: Worker, request_id: bytes) -> None:
        """Have a worker send an answer, now or when it is there (joined)."""
        self._resends[worker.id].append(request_id)

    def take_outbox(self, now: float) -> list[Action]:
        """Return what is to be sent, in order, and start afresh."""
        out, self._outbox = self._outbox, []
        if self._releases or self._resends:
            for worker_id, ids in self._releases.items():
                out += [ToWorker(worker_id, Release(request_ids=part)) for part in _parts(ids)]
            for worker_id, ids in self._resends.items():
                out += [ToWorker(worker_id, Resend(request_ids=part)) for part in _parts(ids)]
            self._releases.clear()
            self._resends.clear()
        if self._accepted or self._acknowledged:
            if self.join_until is None:
                self.join_until = now + self.settings.join_seconds
            if now >= self.join_until:
                self.join_until = None
                out += self._take_joined()
        return out

    def _take_joined(self) -> Iterator[Action]:
        for client_id, accepted in self._accepted.items():
            if client_id in self.clients:
                yield from (ToClient(client_id, Accepted(request_ids=part)) for part in _parts(accepted))
        for worker_id, ids in self._acknowledged.items():
            if worker_id in self.workers:
                yield from (ToWorker(worker_id, Release(request_ids=part)) for part in _parts(ids))
        self._accepted.clear()
        self._acknowledged.clear()


def _parts(ids: Iterable[bytes]) -> list[list[bytes]]:
    unique = list(dict.fromkeys(ids))
    return [unique[start : start + MAX_IDS_PER_MESSAGE] for start in range(0, len(unique), MAX_IDS_PER_MESSAGE)]

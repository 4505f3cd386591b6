"""`WorkerSessions`: the messages of workers, and their liveness."""

import logging
from collections.abc import Sequence

from imagegen_broker.core.capabilities import FleetCapabilities
from imagegen_broker.core.events import Payload, SendToWorker
from imagegen_broker.core.outbox import Outbox
from imagegen_broker.core.reconciliation import Reconciliation
from imagegen_broker.core.records import Relay, State, Worker
from imagegen_broker.core.request_table import RequestTable
from imagegen_broker.core.transfers import Transfers
from imagegen_broker.scheduling.scheduler import Scheduler
from imagegen_protocol.capabilities import decode_capabilities
from imagegen_protocol.errors import (
    RETURNED,
    GenerationFailedError,
    OverloadedError,
    ProtocolError,
    WorkerNameTakenError,
)
from imagegen_protocol.limits import MAX_INLINE_BYTES, MAX_PAYLOAD_BYTES
from imagegen_protocol.messages import (
    BrokerHeartbeat,
    Chunk,
    Error,
    Fetch,
    Goodbye,
    Message,
    Progress,
    Ready,
    Result,
    Work,
    WorkerHeartbeat,
    WorkerMessage,
)

_MAX_REPORTS_PER_SECOND = 200
"""PROGRESS messages of one request that are forwarded; more would fill the connection of its client."""
_MAX_LOGGED_MODELS = 8
"""Models in the log line of a registration: a worker may serve 256, with names of 128 characters."""


class WorkerSessions:
    """The registered workers: registration, lists of held requests, answers and departures."""

    def __init__(self, table: RequestTable, scheduler: Scheduler, outbox: Outbox, transfers: Transfers) -> None:
        self._table = table
        self._transfers = transfers
        self._requests = Reconciliation(table, scheduler, outbox)
        self._scheduler = scheduler
        self._outbox = outbox
        self._settings = table.settings
        self.by_id: dict[bytes, Worker] = {}
        """The workers by routing id."""
        self.capabilities = FleetCapabilities()
        self._sessions = 0
        self._by_process: dict[bytes, Worker] = {}
        self._by_name: dict[str, Worker] = {}

    def handle(
        self, worker_id: bytes, message: WorkerMessage, header: bytes, payload: Payload, now: float
    ) -> None:
        """Handle a message of a worker; `worker_id` is its routing id, `header` the encoded message."""
        if isinstance(message, Ready):
            self._ready(worker_id, message, payload, now)
            return
        worker = self.by_id.get(worker_id)
        if worker is None:
            if not isinstance(message, Goodbye):
                self._outbox.add(SendToWorker(worker_id, self._heartbeat(session=0, beat=0)))
            return
        worker.last_received = now
        match message:  # the most frequent types come first
            case Result():
                self._result(worker, message, header, payload, now)
            case Chunk():
                self._transfers.on_worker_chunk(worker, message, payload, now)
            case Fetch():
                self._transfers.on_worker_fetch(worker, message)
            case WorkerHeartbeat():
                worker.window.confirm(message.token)
                worker.reachable = True  # only a heartbeat contains the current list of held requests
                worker.heartbeat_number = message.number
                worker.draining = message.state == "draining"
                worker.step_age = message.step_age_seconds
                trusted_beat = message.beat if message.session == worker.session else -1
                self._requests.reconcile(worker, message, trusted_beat, now)
            case Progress():
                self._progress(worker, message, header, payload)
            case Error(request_id=request_id) if request_id is not None:
                if message.code == RETURNED:
                    self._returned(worker, request_id, now)
                else:
                    self._answer(worker, request_id, message.code, header, payload, now)
            case Goodbye():
                self.remove(worker, now)

    def malformed(self, worker_id: bytes, problem: ProtocolError, now: float) -> None:
        """Fail the request of an answer that cannot be decoded: the worker would send the same bytes again."""
        worker = self.by_id.get(worker_id)
        if worker is None or problem.request_id is None or not problem.is_answer:
            return
        if (assignment := worker.assigned.get(problem.request_id)) is not None:
            text = f"worker {worker.name!r} sent an answer that breaks the protocol: {problem.message}"
            self._requests.fail(assignment.request, GenerationFailedError.code, text, now)

    def send_failed(self, worker_id: bytes, message: Message) -> None:
        """Dispatch nothing to a worker until its next heartbeat; requeue the request whose WORK was not sent."""
        worker = self.by_id.get(worker_id)
        if worker is None:
            return
        request_id = message.request_id if isinstance(message, Work) else None
        if isinstance(message, Chunk):
            worker.window.remove(message.token)
        worker.reachable = False
        self._scheduler.worker_changed(worker)
        if request_id is not None and request_id in worker.assigned:
            request = worker.assigned[request_id].request
            self._table.requeue(request, "unreachable", request.dispatched_at)  # that was just now

    # ---- sessions -------------------------------------------------------------------------------

    def tick(self, now: float, *, expire: bool) -> None:
        """Send a heartbeat to each worker; with `expire`, remove those that have been silent for too long."""
        for worker in list(self.by_id.values()):
            if expire and now - worker.last_received > self._settings.silence:
                self.remove_dead_worker(worker, now)
            else:
                self._send_heartbeat(worker)

    def _ready(self, worker_id: bytes, message: Ready, payload: Payload, now: float) -> None:
        worker = self.by_id.get(worker_id)
        if worker is None:
            if (other := self._by_process.get(message.worker_id)) is not None:
                self.remove(other, now, reason="worker_reconnected")  # the same process on a new socket
            if (other := self._by_name.get(message.name)) is not None:
                self._reject(worker_id, other)
                return
            if len(self.by_id) >= self._settings.max_workers:
                text = f"the broker has {len(self.by_id)} workers, which is the maximum"
                self._outbox.log(logging.WARNING, "worker rejected", worker=message.name, reason="too_many")
                self._outbox.add(SendToWorker(worker_id, Error(code=OverloadedError.code, message=text)))
                return
            worker = self._register(worker_id, message, now)
        if payload:
            # A registered worker sends READY again when it knows more capabilities.
            found = decode_capabilities(memoryview(payload[0]))
            known = {name: each for name, each in found.items() if name in worker.ready.models}
            worker.capabilities = {**worker.capabilities, **known}
            self.capabilities.changed()
        worker.last_received = now
        self._requests.reconcile(worker, message, -1, now)
        self._send_heartbeat(worker)

    def _register(self, worker_id: bytes, ready: Ready, now: float) -> Worker:
        self._sessions += 1
        worker = Worker(id=worker_id, ready=ready, session=self._sessions, last_received=now)
        self.by_id[worker_id] = self._by_process[ready.worker_id] = self._by_name[ready.name] = worker
        self._scheduler.add_worker(worker)
        self._table.limits.capacity_changed()
        self._table.counters.workers_registered += 1
        self._outbox.log(
            logging.INFO,
            "worker registered",
            worker=ready.name,
            host=ready.host,
            gpu=ready.gpu_id,
            models=_list(ready.models),
            capacity=ready.capacity,
        )
        # Unless the operator has chosen a default, it is the first model that was served and still is.
        default = self._table.default_model
        if default is None or (self._settings.default_model is None and not self._scheduler.pool.serves(default)):
            self._table.set_default_model(ready.models[0])
        return worker

    def _reject(self, worker_id: bytes, holder: Worker) -> None:
        self._outbox.log(logging.WARNING, "worker rejected", worker=holder.name, reason="name_taken")
        text = f"a live worker on {holder.ready.host} is named {holder.name!r}; choose another name with --name"
        self._outbox.add(SendToWorker(worker_id, Error(code=WorkerNameTakenError.code, message=text)))

    def remove(self, worker: Worker, now: float, reason: str = "worker_left") -> None:
        """Remove a worker that has left, and requeue its requests with this reason."""
        self._remove_session(worker)
        self._log_departure(logging.INFO, "worker left", worker, now)
        for assignment in list(worker.assigned.values()):
            self._table.requeue(assignment.request, reason, now)
        self._outbox.discard_worker(worker.id)

    def remove_dead_worker(self, worker: Worker, now: float) -> None:
        """Remove a dead worker, and requeue its requests or fail those on which too many workers died."""
        self._table.counters.workers_lost += 1
        self._remove_session(worker)
        self._log_departure(logging.WARNING, "worker lost", worker, now)
        self._requests.requeue_after_failure(worker, "worker_lost", "died", now)
        self._outbox.discard_worker(worker.id)

    def _remove_session(self, worker: Worker) -> None:
        self._scheduler.remove_worker(worker)
        self._table.limits.capacity_changed()
        del self.by_id[worker.id], self._by_process[worker.ready.worker_id], self._by_name[worker.name]
        self.capabilities.changed()
        self._table.holders.update(worker, frozenset())
        for assignment in list(worker.answers.values()):
            self._table.lose_answer(assignment.request)

    def _log_departure(self, level: int, text: str, worker: Worker, now: float) -> None:
        silent = now - worker.last_received
        requests = len(worker.assigned)
        self._outbox.log(level, text, worker=worker.name, silent_seconds=silent, requests=requests)

    # ---- heartbeats -----------------------------------------------------------------------------

    def _heartbeat(self, session: int, beat: int, number: int | None = None) -> BrokerHeartbeat:
        return BrokerHeartbeat(
            epoch=self._settings.epoch,
            session=session,
            beat=beat,
            interval_seconds=self._settings.interval,
            liveness=self._settings.liveness,
            fetch_window_bytes=self._settings.fetch_window_bytes,
            number=number,
        )

    def _send_heartbeat(self, worker: Worker) -> None:
        worker.beat += 1
        heartbeat = self._heartbeat(worker.session, worker.beat, worker.heartbeat_number)
        self._outbox.add(SendToWorker(worker.id, heartbeat))

    # ---- answers --------------------------------------------------------------------------------

    def _progress(self, worker: Worker, message: Progress, header: bytes, payload: Payload) -> None:
        assignment = worker.assigned.get(message.request_id)
        if assignment is None or not assignment.request.progress or assignment.request.client.blocked:
            return
        if assignment.count_report(worker.beat) > _MAX_REPORTS_PER_SECOND * max(1.0, self._settings.interval):
            return
        request = assignment.request
        preview = payload if request.submit.preview else ()
        self._outbox.add(self._transfers.progress(request.client, message, header, preview))

    def _result(self, worker: Worker, message: Result, header: bytes, payload: Payload, now: float) -> None:
        """Deliver a RESULT, or end the request if its payload breaks the protocol."""
        sizes = message.frame_bytes or [len(frame) for frame in payload]
        size = sum(sizes)
        problem = _payload_problem(message, payload, sizes, size)
        if problem is not None:
            error = ProtocolError(problem)
            error.request_id, error.is_answer = message.request_id, True
            self.malformed(worker.id, error, now)
            return
        relay = Relay(message.payload_id, size) if message.payload_id is not None and message.frame_bytes else None
        self._answer(worker, message.request_id, "result", header, payload, now, relay)

    def _answer(
        self,
        worker: Worker,
        request_id: bytes,
        outcome: str,
        header: bytes,
        payload: Payload,
        now: float,
        relay: Relay | None = None,
    ) -> None:
        """Deliver an answer; with `relay`, the client fetches its payload from the worker."""
        table = self._table
        if request_id in worker.foreign:
            worker.foreign.discard(request_id)
            self._scheduler.worker_changed(worker)
        request = table.requests.get(request_id)
        if request is None:
            if request_id in table.recent_ids:
                self._outbox.release(worker.id, request_id)
            return
        if request.state is State.DELIVERED and request.worker is None and request.answer is None:
            table.hold_answer(request, worker)  # the worker counted as dead, and still has the answer
        elif request.worker is not worker and request.state not in (State.QUEUED, State.RECEIVING):
            self._outbox.release(worker.id, request_id)
            return
        elif request.state is not State.DELIVERED:
            table.deliver(request, worker, outcome, now)
        if relay is not None:
            request.start_relay(relay)
        table.send_answer(request, header, payload)

    def _returned(self, worker: Worker, request_id: bytes, now: float) -> None:
        """Requeue a request that a draining worker has not started."""
        worker.draining = True
        assignment = worker.assigned.get(request_id)
        if assignment is not None:
            self._table.requeue(assignment.request, "returned", now)
        self._scheduler.worker_changed(worker)
        self._outbox.release(worker.id, request_id)


def _list(models: Sequence[str]) -> str:
    more = f" and {len(models) - _MAX_LOGGED_MODELS} more" if len(models) > _MAX_LOGGED_MODELS else ""
    return ",".join(models[:_MAX_LOGGED_MODELS]) + more


def _payload_problem(message: Result, payload: Payload, sizes: list[int], size: int) -> str | None:
    """Return what is wrong with the payload of a RESULT, or with the sizes of one that is fetched; else None."""
    if not sizes or len(sizes) != len(message.images):
        return f"expected one frame for each of {len(message.images)} images, got {len(sizes)}"
    if message.frame_bytes and (payload or message.payload_id is None):
        return "a payload that is fetched needs a payload_id and no inline frames"
    if payload and size > MAX_INLINE_BYTES:
        return f"the inline payload is {size} bytes long, at most {MAX_INLINE_BYTES} are allowed"
    if not 0 < size <= MAX_PAYLOAD_BYTES:
        return f"the payload is {size} bytes long, from 1 to {MAX_PAYLOAD_BYTES} are allowed"
    return None

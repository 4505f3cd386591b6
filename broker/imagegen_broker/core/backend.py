"""What the broker does with workers' messages, and with their silence."""

import logging

from imagegen_broker.core.ledger import Ledger
from imagegen_broker.core.records import Payload, Request, State, ToClient, ToWorker, Worker
from imagegen_protocol.capabilities import decode_capabilities
from imagegen_protocol.errors import (
    RETURNED,
    GenerationFailedError,
    PoisonRequestError,
    ProtocolError,
    WorkerNameTakenError,
)
from imagegen_protocol.limits import MAX_PREVIEW_BYTES
from imagegen_protocol.messages import (
    BrokerHeartbeat,
    Error,
    Goodbye,
    Progress,
    Ready,
    Result,
    WorkerHeartbeat,
    WorkerMessage,
    WorkerReport,
)


class Backend:
    """Workers: registration, holdings, answers, deaths."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._sessions = 0
        self._processes: dict[bytes, Worker] = {}
        """The registered workers by the id of their process."""
        self._names: dict[str, Worker] = {}
        """The registered workers by name."""

    def handle(
        self, worker_id: bytes, message: WorkerMessage, header: bytes, payload: Payload, now: float
    ) -> None:
        """Take one message of a worker; `worker_id` is its routing id, `header` the message as it came."""
        worker = self._ledger.workers.get(worker_id)
        if isinstance(message, Ready):
            self._register(worker_id, message, payload, now)
            return
        if worker is None:
            if not isinstance(message, Goodbye):
                self._ledger.send(ToWorker(worker_id, self._beat(session=0, beat=0)))
            return
        worker.heard = now
        match message:
            case WorkerHeartbeat():
                worker.reachable = True  # and no other message says what it has now
                worker.draining = message.state == "draining"
                worker.step_age = message.step_age_seconds
                trusted = message.beat if message.session == worker.session else -1
                self._reconcile(worker, message, trusted, now)
            case Progress():
                self._progress(worker, message, header, payload)
            case Result():
                self._answer(worker, message.request_id, "result", header, payload, now)
            case Error(request_id=request_id) if request_id is not None:
                if message.code == RETURNED:
                    self._returned(worker, request_id, now)
                else:
                    self._answer(worker, request_id, message.code, header, payload, now)
            case Goodbye():
                self.remove(worker, now, died=False)

    def tick(self, now: float, *, slept: bool) -> None:
        """Bury dead workers, unless the broker itself `slept` and may not have read all; beat for the others."""
        for worker in list(self._ledger.workers.values()):
            if now - worker.heard > self._ledger.settings.silence and not slept:
                self._ledger.counters.workers_lost += 1
                self.remove(worker, now, died=True)
            else:
                self._send_beat(worker)

    def unreachable(self, worker_id: bytes, request_id: bytes | None) -> None:
        """The socket did not take a message: no room there until the worker says again what it has."""
        worker = self._ledger.workers.get(worker_id)
        if worker is None:
            return
        worker.reachable = False
        self._ledger.placement.update(worker)
        if request_id is not None and request_id in worker.assigned:
            request = worker.assigned[request_id].request
            self._requeue(request, "unreachable", request.dispatched)  # just now

    def unreadable(self, worker_id: bytes, problem: ProtocolError, now: float) -> None:
        """End the request whose answer from a worker can't be read: the worker would only send the same again."""
        worker = self._ledger.workers.get(worker_id)
        if worker is None or problem.request_id is None or not problem.is_answer:
            return
        if (assignment := worker.assigned.get(problem.request_id)) is not None:
            request = assignment.request
            text = f"worker {worker.name!r} sent an answer that breaks the protocol: {problem.message}"
            code = GenerationFailedError.code
            answer = Error(request_id=request.id, code=code, message=text, attempt=max(1, request.attempt))
            self._ledger.fail(request, answer, now)

    def revoked(self, worker_id: bytes, now: float) -> None:
        """Strike a worker off, if it is one, whose key is no longer allowed; its requests move on."""
        if (worker := self._ledger.workers.get(worker_id)) is not None:
            self.remove(worker, now, died=False)

    # ---- registration ---------------------------------------------------------------------------

    def _register(self, worker_id: bytes, message: Ready, payload: Payload, now: float) -> None:
        worker = self._ledger.workers.get(worker_id)
        if worker is None:
            if (other := self._processes.get(message.worker_id)) is not None:
                self.remove(other, now, died=False)  # the same process on a new socket
            if (other := self._names.get(message.name)) is not None:
                self._refuse(worker_id, other)
                return
            self._sessions += 1
            worker = Worker(id=worker_id, ready=message, session=self._sessions, heard=now)
            self._ledger.workers[worker_id] = worker
            self._processes[message.worker_id] = self._names[message.name] = worker
            self._ledger.placement.add(worker)
            self._ledger.counters.workers_registered += 1
            self._ledger.note(
                logging.INFO,
                "worker registered",
                worker=message.name,
                host=message.host,
                gpu=message.gpu_id,
                models=",".join(message.models),
                capacity=message.capacity,
            )
            self._adopt_default_model(message.models[0])
        if payload:
            # A registered worker says READY again when it has learnt more.
            worker.capabilities = decode_capabilities(memoryview(payload[0]))
            self._ledger.capabilities.changed()
        worker.heard = now
        self._reconcile(worker, message, -1, now)
        self._send_beat(worker)

    def _refuse(self, worker_id: bytes, holder: Worker) -> None:
        self._ledger.note(logging.WARNING, "worker refused: its name is taken", worker=holder.name)
        text = f"a live worker on {holder.ready.host} is named {holder.name!r}; choose another with --name"
        self._ledger.send(ToWorker(worker_id, Error(code=WorkerNameTakenError.code, message=text)))

    def _adopt_default_model(self, model: str) -> None:
        """The first model served is the default while somebody serves it, unless the operator has chosen one."""
        ledger = self._ledger
        if ledger.settings.default_model is None and not (
            ledger.default_model and ledger.placement.serves(ledger.default_model)
        ):
            ledger.default_model = model
        # Those who asked for the default before it was known.
        for request in list(ledger.queue.in_order(None)):
            ledger.queue.remove(request)
            request.model = ledger.default_model
            ledger.queue.push(request)

    def remove(self, worker: Worker, now: float, *, died: bool) -> None:
        """Strike a worker off; what it had goes back to the head of the queue."""
        ledger = self._ledger
        ledger.placement.remove(worker)
        del ledger.workers[worker.id]
        ledger.capabilities.changed()
        del self._processes[worker.ready.worker_id], self._names[worker.name]
        ledger.note_listed(worker, frozenset())
        for assignment in list(worker.holding.values()):
            assignment.request.worker = None
        self._ledger.note(
            logging.WARNING if died else logging.INFO,
            "worker lost" if died else "worker left",
            worker=worker.name,
            silent_seconds=now - worker.heard,
            requests=len(worker.assigned),
        )
        if died:
            self._move_on(worker, "worker_lost", "died", now)
        else:
            self._move_on(worker, "worker_left", None, now)

    def _move_on(self, worker: Worker, reason: str, fate: str | None, now: float) -> None:
        """Take a worker's requests from it; `fate`: what became of it, held against those that were running."""
        for request_id, assignment in list(worker.assigned.items()):
            request = assignment.request
            is_death = fate is not None and request_id in worker.running
            if is_death:
                request.deaths.append(f"attempt {request.attempt} on {worker.name!r}, which {fate}")
            if len(request.deaths) >= self._ledger.settings.max_attempts:
                text = f"it took {len(request.deaths)} workers down: {'; '.join(request.deaths)}"
                code = PoisonRequestError.code
                answer = Error(request_id=request.id, code=code, message=text, attempt=request.attempt)
                self._ledger.fail(request, answer, now)
            else:
                self._requeue(request, reason, now, is_death=is_death)

    def _requeue(self, request: Request, reason: str, now: float, *, is_death: bool = False) -> None:
        self._ledger.requeue(request, reason, now, is_death=is_death)
        if request.state is State.QUEUED and (other := self._ledger.copy_of(request)) is not None:
            self._ledger.attach(request, other)  # another broker gave it that

    # ---- heartbeats -----------------------------------------------------------------------------

    def _beat(self, session: int, beat: int) -> BrokerHeartbeat:
        settings = self._ledger.settings
        return BrokerHeartbeat(
            epoch=settings.epoch,
            session=session,
            beat=beat,
            interval_seconds=settings.interval,
            liveness=settings.liveness,
        )

    def _send_beat(self, worker: Worker) -> None:
        worker.beat += 1
        self._ledger.send(ToWorker(worker.id, self._beat(worker.session, worker.beat)))

    def _check_step(self, worker: Worker, now: float) -> None:
        """A worker whose step is too old hangs, though its heartbeats go on: what it has moves on."""
        limit = self._ledger.settings.step_timeout
        stuck = bool(limit) and worker.step_age is not None and worker.step_age > (limit or 0)
        if stuck and not worker.stuck:
            self._ledger.counters.workers_stuck += 1
            worker.stuck = True
            requests = len(worker.assigned)
            self._ledger.note(
                logging.WARNING,
                "worker hangs",
                worker=worker.name,
                step_age_seconds=worker.step_age,
                requests=requests,
            )
            self._move_on(worker, "worker_stuck", "hung", now)
        worker.stuck = stuck

    def _reconcile(self, worker: Worker, listed: WorkerReport, trusted_beat: int, now: float) -> None:
        """Compare what a worker says it holds with what the broker gave it.

        What was given before the broker's heartbeat number `trusted_beat`, and is not listed, was lost.
        """
        ledger = self._ledger
        worker.stats = listed.stats
        worker.seconds_per_image = listed.seconds_per_image
        worker.warm = frozenset(listed.warm)
        worker.runs(frozenset(listed.running), now)
        worker.finished = frozenset(listed.finished)
        active = worker.running.union(listed.queued)
        finished = worker.finished
        ledger.note_listed(worker, active | finished)
        self._check_step(worker, now)
        worker.others = {request_id for request_id in active if request_id not in worker.assigned}
        for request_id, assignment in list(worker.assigned.items()):
            if request_id in active or assignment.beat >= trusted_beat:
                continue
            if request_id in finished:
                assignment.beat = worker.beat  # ask once a round trip, not once a heartbeat
                ledger.ask_again(worker, request_id)
            else:
                self._requeue(assignment.request, "lost", now)
        for request_id, assignment in list(worker.holding.items()):
            if request_id not in finished and assignment.beat < trusted_beat:
                del worker.holding[request_id]
                assignment.request.worker = None  # the answer is gone; made again if nobody acknowledges
        for request_id in (*listed.running, *listed.queued, *listed.finished):
            if request_id not in worker.assigned:
                self._claim(worker, request_id, usable=request_id in finished or not worker.stuck)
        ledger.placement.update(worker)

    def _claim(self, worker: Worker, request_id: bytes, *, usable: bool) -> None:
        """Decide about an id that a worker has, though this broker has not given it, or knows it finished.

        `usable`: there is an answer, or it can be expected.
        """
        request = self._ledger.requests.get(request_id)
        worker.unclaimed.discard(request_id)
        if request is None:
            ended = self._ledger.tombstones.get(request_id)
            if ended is not None:
                self._ledger.release(worker, request_id)
            if usable and not ended:  # nobody has its answer: whoever gave it up may come back for it
                worker.unclaimed.add(request_id)
        elif request.state is State.QUEUED:
            if usable:
                self._ledger.attach(request, worker)
        elif request.state is State.DELIVERED and request.worker is None and request.answer is None:
            self._ledger.hold(request, worker)  # it was thought dead, and still has the answer
        elif request.worker is not worker:
            self._ledger.release(worker, request_id)

    # ---- answers --------------------------------------------------------------------------------

    def _progress(self, worker: Worker, message: Progress, header: bytes, payload: Payload) -> None:
        assignment = worker.assigned.get(message.request_id)
        if assignment is None or not assignment.request.progress or assignment.request.client.blocked:
            return
        request = assignment.request
        is_preview = request.preview and len(payload) == 1 and len(payload[0]) <= MAX_PREVIEW_BYTES
        self._ledger.send(ToClient(request.client.id, header, payload if is_preview else ()))

    def _answer(
        self, worker: Worker, request_id: bytes, outcome: str, header: bytes, payload: Payload, now: float
    ) -> None:
        ledger = self._ledger
        if request_id in worker.others:
            worker.others.discard(request_id)
            ledger.placement.update(worker)
        request = ledger.requests.get(request_id)
        if request is None:
            if request_id in ledger.tombstones:
                ledger.release(worker, request_id)
            return
        if request.state is State.DELIVERED:
            if request.worker is None and request.answer is None:
                ledger.hold(request, worker)  # it was thought dead, and still has the answer
            elif request.worker is not worker:
                ledger.release(worker, request_id)
                return
        elif request.state is State.DISPATCHED and request.worker is not worker:
            ledger.release(worker, request_id)
            return
        else:
            ledger.deliver(request, worker, outcome, now)
        ledger.pass_on(request, header, payload)

    def _returned(self, worker: Worker, request_id: bytes, now: float) -> None:
        """A draining worker gives a request back unmade."""
        worker.draining = True
        assignment = worker.assigned.get(request_id)
        if assignment is not None:
            self._requeue(assignment.request, "returned", now)
        self._ledger.placement.update(worker)
        self._ledger.release(worker, request_id)

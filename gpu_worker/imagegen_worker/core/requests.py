"""The life of a request in the worker: parsed, decoded, run by the engine, answered, acknowledged."""

import logging
from collections.abc import Iterator, Sequence

from imagegen_protocol import (
    GenerationRequest,
    InvalidRequestError,
    ModelNotFoundError,
    check_frames,
    parse_request,
)
from imagegen_protocol.costs import check_shape
from imagegen_protocol.errors import DeadlineExceededError, GenerationFailedError
from imagegen_protocol.limits import (
    MAX_BODY_BYTES,
    MAX_FRAME_BYTES,
    MAX_IDS_PER_MESSAGE,
    MAX_INPUTS,
    MAX_WARNING_LENGTH,
    MAX_WARNINGS,
)
from imagegen_protocol.messages import Chunk, Error, Fetch, Result, Work
from imagegen_worker.core import events as ev
from imagegen_worker.core.answer_sender import AnswerSender
from imagegen_worker.core.broker_session import BrokerSession, BrokerSessions, truncate_message
from imagegen_worker.core.exclusive_gate import ExclusiveGate
from imagegen_worker.core.held_requests import HeldRequest
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.core.payload_receiver import MAX_ASKS, PayloadReceiver
from imagegen_worker.core.progress_sender import ProgressSender
from imagegen_worker.core.state import WorkerState


class RequestHandler:
    """Moves held requests from state to state, and sends progress and answers to the brokers."""

    def __init__(self, state: WorkerState, brokers: BrokerSessions) -> None:
        self._state = state
        self._held = state.held
        self._brokers = brokers
        self._last_number = 0
        self._progress = ProgressSender(state.held, brokers)
        self._receiver = PayloadReceiver(brokers, state.limits.input_bytes)
        self._answers = AnswerSender(state, brokers)
        self.gate = ExclusiveGate()

    # ---- messages from a broker ------------------------------------------------------------------------------

    def on_work(self, session: BrokerSession, work: Work, frames: tuple[bytes, ...], now: float) -> None:
        """Accept a request, attach it to the held one with the same id, or return it to the broker."""
        deadline = None if work.timeout_seconds is None else now + work.timeout_seconds
        held = self._held.get(work.request_id)
        if held is not None:
            held.attempt, held.deadline = work.attempt, deadline
            held.progress, held.preview = work.progress or work.preview, work.preview
            held.inline_bytes, held.source = work.inline_bytes, session.epoch
            self.on_resend(session, held, now)
            if held.download is not None:
                self._receive(held, work, frames, now)
            return
        unfinished = len(self._held.queued) + len(self._held.running)
        full = unfinished >= MAX_IDS_PER_MESSAGE  # a heartbeat could not list one more
        if self._state.draining or not self._state.models.names or full:
            self._answers.return_request(session, work.request_id, work.attempt)
            return
        self._last_number += 1
        held = HeldRequest(
            id=work.request_id,
            number=self._last_number,
            broker=session.index,
            attempt=work.attempt,
            progress=work.progress or work.preview,
            preview=work.preview,
            inline_bytes=work.inline_bytes,
            announced_images=work.images,
            shape=work.shape,
            claimed_by=session.epoch,
            source=session.epoch,
            exclusive=work.alone,
            arrived=now,
            deadline=deadline,
        )
        self._held.add(held)
        try:
            held.model = self._state.models.resolve_name(work.model)
        except ModelNotFoundError as error:
            self._fail(held, error.code, error.message, now)
            return
        self._receive(held, work, frames, now)

    def _receive(self, held: HeldRequest, work: Work, frames: tuple[bytes, ...], now: float) -> None:
        """Parse a request whose payload is inline; else fetch its payload, or the rest of it."""
        if not work.frame_bytes:
            self._receiver.release(held)
            held.arrived = now
            self._parse(held, frames, now)
        elif held.download is None or held.download.total != sum(work.frame_bytes):
            self._receiver.release(held)
            try:
                check_sizes(work.frame_bytes)
                self._receiver.receive(held, work.frame_bytes)
            except InvalidRequestError as error:
                self._fail(held, error.code, error.message, now)

    def _parse(self, held: HeldRequest, frames: tuple[bytes, ...], now: float) -> None:
        """Send a request to the decoders or the engine; load its model first if its capabilities are unknown."""
        try:
            request = parse_body(frames)
            if held.announced_images not in (None, request.num_images):
                announced = f"{held.announced_images} as the request's header states"
                raise InvalidRequestError(f"num_images: expected {announced}, got {request.num_images}")
            check_shape(held.shape, request)
            model = self._state.models.get(held.model)
            if model is None:
                held.unparsed = frames
                self._state.actions.append(ev.LoadModel(held.model))
                return
            held.unparsed = None
            model.check(request)
            if request.inputs:
                self._state.actions.append(ev.Decode(held.number, request, model, frames[1:]))
            else:
                self._submit(held, model.resolve(request), now)
        except InvalidRequestError as error:
            self._fail(held, error.code, error.message, now)

    def _submit(self, held: HeldRequest, request: ResolvedRequest, now: float) -> None:
        """Send a request to the engine, unless its size or steps contradict its header."""
        try:
            request.check_shape(held.shape)
        except InvalidRequestError as error:
            self._fail(held, error.code, error.message, now)
            return
        held.request = request
        self._receiver.release(held)
        self.gate.add(ev.Job(held.number, request, held.arrived, held.preview), exclusive=held.exclusive)

    def on_resend(self, session: BrokerSession, held: HeldRequest, now: float) -> None:
        """Send the answer to this broker when it exists, or at once if it exists already.

        If the request still lacks its payload and only another broker has that, the request is returned.
        """
        if held.download is not None and held.source != session.epoch:
            self._receiver.keep(held, now)
            self._give_back(session, held, "its payload has not arrived")
            return
        self._receiver.move(held, session)
        held.broker, held.claimed_by = session.index, session.epoch
        if held.answer is not None:
            self._held.touch(held, now)  # a client still waits for it, perhaps behind other answers
            self._answers.send(session, held.answer, held)

    def on_chunk(self, session: BrokerSession, chunk: Chunk, frames: tuple[bytes, ...], now: float) -> None:
        """Store a part of a payload; parse the request if it is the last one."""
        complete = self._receiver.on_chunk(session, chunk, frames, now)
        if complete is not None:
            self._parse(*complete, now)

    def on_fetch(self, session: BrokerSession, fetch: Fetch, now: float) -> None:
        """Send the requested chunks of an answer's images, to any broker that sends FETCH."""
        held = self._held.finished.get(fetch.request_id)
        if held is not None and held.payload_id == fetch.payload_id:
            self._held.fetch(held, min(fetch.offset + fetch.length, held.image_bytes), now)
            self._answers.send_chunks(session, held, fetch)

    def fetch_payloads(self, now: float) -> None:
        """Send the FETCHes that are due; return requests whose broker left several unanswered."""
        for held, fetch, session in self._receiver.fetches(now):
            if held.download is not None and held.download.stalls >= MAX_ASKS:
                self._give_back(session, held, "its payload did not arrive")
            else:
                self._brokers.send(session, fetch)

    def on_release(self, session: BrokerSession, request_ids: list[bytes]) -> None:
        """Remove requests that are acknowledged or cancelled, except those of another broker that is alive."""
        for request_id in request_ids:
            held = self._held.get(request_id)
            if held is None or (held.broker != session.index and self._is_claimed(held)):
                continue
            if held.answer is None:
                self._cancel(held)
            self._held.remove(held)

    def _is_claimed(self, held: HeldRequest) -> bool:
        """Return whether the broker that sent WORK or RESEND last is alive, and still the same run of it."""
        session = self._brokers[held.broker]
        return session.registered and session.epoch == held.claimed_by

    def admit_jobs(self) -> None:
        """Send the jobs that may run now to the engine. Payloads in transfer do not delay an exclusive job."""
        self._state.actions += self.gate.admit(self._receiver.without_receiving(self._held.numbers))

    # ---- events of the decoders and the engine ---------------------------------------------------------------

    def on_job_event(self, event: ev.JobEvent, now: float) -> None:
        """Handle the progress of jobs; jobs that were cancelled meanwhile are ignored."""
        if isinstance(event, ev.Started):
            self._started(event, now)
        elif isinstance(event, ev.Stepped):
            for number in event.numbers:
                if (held := self._held.by_number(number)) is not None:
                    self._progress.send(held, event.step, event.steps, now)
        elif (held := self._held.by_number(event.number)) is not None:
            self._on_single_job_event(held, event, now)

    def _on_single_job_event(
        self, held: HeldRequest, event: ev.Decoded | ev.Previewed | ev.Finished | ev.Failed, now: float
    ) -> None:
        match event:
            case ev.Decoded():
                if held.request is None:
                    self._submit(held, event.request, now)
            case ev.Previewed():
                self._progress.send_preview(held, event.image, now)
            case ev.Finished():
                self._finished(held, event, now)
            case ev.Failed():
                if (
                    event.code == InvalidRequestError.code and held.request is not None
                ):  # a LoRA that can't be used
                    self._state.loras.discard(held.model, (name for name, _ in held.request.loras))
                self._fail(held, event.code, event.message, now)

    def _started(self, event: ev.Started, now: float) -> None:
        for number in event.numbers:
            held = self._held.by_number(number)
            if held is not None and held.request is not None:
                self._held.start(held)
                self._state.loras.use(held.model, (name for name, _ in held.request.loras))
                self._progress.send(held, 0, held.request.num_inference_steps, now)
        self._brokers.report_now(now)

    def _finished(self, held: HeldRequest, event: ev.Finished, now: float) -> None:
        if held.request is None:
            return
        longest = max(len(image) for image in event.images)
        if longest > MAX_FRAME_BYTES:
            message = f"an encoded image has {longest} bytes; at most {MAX_FRAME_BYTES} can be sent"
            self._fail(held, GenerationFailedError.code, message, now)
            return
        self._state.counters.requests += 1
        self._state.log(
            logging.INFO,
            "request finished",
            request_id=held.id.hex(),
            images=len(event.images),
            batch_size=event.batch_size,
            seconds=event.generation_seconds,
        )
        result = make_result(held, held.request, event, self._state.identity.name)
        held.payload_id = self._answers.new_payload_id(held)
        self._answer(held, result, event.images, now)

    def on_model_loaded(self, name: str, now: float) -> None:
        """Parse the requests that waited for a model."""
        for held in list(self._held.queued.values()):
            if held.unparsed is not None and held.model == name:
                self._parse(held, held.unparsed, now)

    def on_model_failed(self, name: str, message: str, now: float) -> None:
        """Fail all unfinished requests for a model."""
        for held in list(self._held.unfinished()):
            if held.model == name:
                self._cancel(held)
                self._fail(held, GenerationFailedError.code, message, now)

    # ---- draining and time -----------------------------------------------------------------------------------

    def return_queued(self) -> None:
        """Return all queued requests to their brokers."""
        for held in list(self._held.queued.values()):
            self._give_back(self._brokers[held.broker], held)

    def check_deadlines(self, now: float) -> None:
        """Fail requests after their deadline; drop orphaned requests and expired answers."""
        for held in [held for held in self._held.unfinished() if held.deadline and now >= held.deadline]:
            self._cancel(held)
            message = "the request's timeout_seconds ended at the worker"
            self._fail(held, DeadlineExceededError.code, message, now)
        for held in [held for held in self._held.queued.values() if now >= self._orphaned_at(held)]:
            self._cancel(held)
            self._held.remove(held)
            self._state.log(logging.WARNING, "orphaned request dropped", request_id=held.id.hex())
        self._log_dropped(self._held.expire(now), "expired")

    def deadlines(self) -> Iterator[float]:
        """Yield the times at which `check_deadlines` has something to do."""
        yield from (held.deadline for held in self._held.unfinished() if held.deadline)
        yield from map(self._orphaned_at, self._held.queued.values())
        yield from self._receiver.deadlines()
        if (expiry := self._held.next_expiry()) is not None:
            yield expiry

    def _orphaned_at(self, held: HeldRequest) -> float:
        """Return when a queued request is dropped because its broker is silent."""
        silent_since = self._brokers[held.broker].silent_since
        return max(silent_since, held.arrived) + self._state.limits.orphan_seconds

    # ---- answers ---------------------------------------------------------------------------------------------

    def _fail(self, held: HeldRequest, code: str, message: str, now: float) -> None:
        self._state.counters.failed += 1
        error = Error(code=code, message=truncate_message(message), request_id=held.id, attempt=held.attempt)
        self._answer(held, error, (), now)

    def _answer(self, held: HeldRequest, answer: Result | Error, images: tuple[bytes, ...], now: float) -> None:
        self._state.counters.outcomes["result" if isinstance(answer, Result) else answer.code] += 1
        was_running = held.id in self._held.running
        self.gate.discard(held.number)
        self._receiver.release(held)
        self._log_dropped(self._held.finish(held, answer, images, now), "too many")
        session = self._brokers[held.broker]
        if session.registered:
            self._answers.send(session, answer, held)
        if was_running and not self._held.running:
            self._brokers.report_soon(now)  # the other brokers still count the request as running

    def _give_back(self, session: BrokerSession, held: HeldRequest, reason: str = "") -> None:
        """Forget a queued request and return it to a broker."""
        self._cancel(held)
        self._held.remove(held)
        if session.registered:
            self._answers.return_request(session, held.id, held.attempt, reason)

    def _cancel(self, held: HeldRequest) -> None:
        self._receiver.release(held)
        if not self.gate.discard(held.number):
            self._state.actions.append(ev.Cancel(held.number))

    def _log_dropped(self, answers: list[HeldRequest], reason: str) -> None:
        for held in answers:
            self._state.log(logging.WARNING, "answer dropped", reason=reason, request_id=held.id.hex())


def make_result(held: HeldRequest, request: ResolvedRequest, event: ev.Finished, worker: str) -> Result:
    """Return the answer to a request that succeeded on the worker of this name."""
    return Result(
        request_id=held.id,
        attempt=held.attempt,
        worker=worker,
        model=request.model,
        images=list(event.infos),
        batch_size=event.batch_size,
        queue_seconds=event.queue_seconds,
        generation_seconds=event.generation_seconds,
        encode_seconds=event.encode_seconds,
        parameters=request.parameters(),
        warnings=[text[:MAX_WARNING_LENGTH] for text in event.warnings[:MAX_WARNINGS]],
    )


def check_sizes(frame_bytes: Sequence[int]) -> None:
    """Raise `InvalidRequestError` for frame sizes that no valid request has; call it before fetching."""
    body, *inputs = frame_bytes
    if not 0 < body <= MAX_BODY_BYTES:
        raise InvalidRequestError(f"expected a body of 1 to {MAX_BODY_BYTES} bytes, got {body}")
    if len(inputs) > MAX_INPUTS:
        raise InvalidRequestError(f"inputs: at most {MAX_INPUTS} image frames are allowed, got {len(inputs)}")


def parse_body(frames: tuple[bytes, ...]) -> GenerationRequest:
    """Return the request in the frames of WORK after its header. Raises `InvalidRequestError`."""
    if not frames:
        raise InvalidRequestError("the body frame is missing")
    request = parse_request(frames[0])
    check_frames(request, len(frames) - 1)
    return request

"""The worker's core: events in, actions out. `docs/protocol.md` §4 says why each rule is as it is.

The same events at the same times give the same actions, always: there is no socket, clock, thread or randomness.
"""

import logging
from collections import Counter
from dataclasses import replace

import msgspec

from imagegen_protocol import InvalidRequestError, ModelNotFoundError, ProtocolError
from imagegen_protocol.errors import (
    RETURNED,
    DeadlineExceededError,
    GenerationFailedError,
    UnauthorizedError,
    WorkerNameTakenError,
)
from imagegen_protocol.limits import MAX_FRAME_BYTES, MAX_IDS_PER_MESSAGE, MAX_PREVIEW_BYTES
from imagegen_protocol.messages import (
    BrokerHeartbeat,
    Drain,
    Error,
    Goodbye,
    Progress,
    Release,
    Resend,
    Result,
    Work,
    WorkerMessage,
)
from imagegen_worker.core import events as ev
from imagegen_worker.core.answers import cut, read_request, result
from imagegen_worker.core.catalogue import Catalogue
from imagegen_worker.core.exclusive_gate import ExclusiveGate
from imagegen_worker.core.held import Held, Holding
from imagegen_worker.core.identity import Condition, Identity, heartbeat, ready
from imagegen_worker.core.link import Link
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.core.policy import Policy
from imagegen_worker.core.steps import StepWatch
from imagegen_worker.core.totals import Totals

DEVICE_HUNG_STATUS = 70
"""The exit status of a worker whose device hangs (EX_SOFTWARE): to be started afresh."""


class WorkerCore:
    """One worker and its registrations with any number of brokers, called links and numbered from 0."""

    def __init__(self, identity: Identity, *, links: int, policy: Policy, now: float) -> None:
        self._identity = identity
        self._policy = policy
        self._links = [Link(index, unregistered_since=now, send_at=now) for index in range(links)]
        self._catalogue = Catalogue()
        self._device = ""
        self._numbers = 0
        self._steps = StepWatch(policy.step_timeout)
        self._seconds_per_image: float | None = None
        self._exited = False
        self._quiet_since: float | None = None
        self._actions: list[ev.Action] = []
        self.draining = False
        self.held = Holding(policy.held)
        self._gate = ExclusiveGate()
        self.totals = Totals()
        self.outcomes: Counter[str] = Counter()
        """Answers by outcome: "result" or the error's code."""

    @property
    def warm(self) -> bool:
        """Whether the first model is loaded."""
        return bool(self._catalogue.served)

    @property
    def warm_models(self) -> tuple[str, ...]:
        """The models that are loaded, or are being loaded."""
        return self._catalogue.warm

    @property
    def registered(self) -> int:
        """Brokers that have us registered."""
        return sum(link.registered for link in self._links)

    @property
    def seconds_per_image(self) -> float | None:
        """The backend's last word on its speed."""
        return self._seconds_per_image

    def step_age(self, now: float) -> float | None:
        """Return the seconds since the device's last step; None if it need not make any."""
        return self._steps.age(now)

    def shows_metrics_at(self, address: str) -> None:
        """Learn, before READY, where the metrics are, as HOST:PORT."""
        self._identity = replace(self._identity, http=address)

    # ---- the three calls of the shell ----------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Take an event in; return what is to be done for it, in order."""
        match event:
            case ev.Received():
                self._received(self._links[event.link], event, now)
            case ev.Malformed():
                self._malformed(self._links[event.link], event.error, now)
            case ev.DrainRequested():
                self._drain(event.reason, now)
            case ev.Warm():
                self._warm(event, now)
            case ev.Loading():
                self._steps.load()
                self._shelved(event.warm, now)
            case ev.Loaded():
                self._loaded(event, now)
            case ev.LoadFailed():
                self._load_failed(event, now)
            case ev.Decoded():
                held = self.held.by_number(event.number)
                if held is not None and held.request is None:
                    self._give_to_engine(held, event.request)
            case ev.Started():
                self._started(event, now)
            case ev.Stepped():
                self._stepped(event, now)
            case ev.Previewed():
                self._previewed(event)
            case ev.Finished():
                self._finished(event, now)
            case ev.Failed():
                self._failed(event, now)
            case ev.CallDone():
                self.totals.call_done(event)
                self._seconds_per_image = event.seconds_per_image
            case ev.CallFailed():
                self.totals.call_failed(event)
            case ev.Idle():
                self._steps.rest()
        return self._settle(now)

    def tick(self, now: float) -> list[ev.Action]:
        """Do what has become due by `now`."""
        if now >= self._steps.hung_at():
            self._hung(now)
        if self._exited:
            return self._settle(now)
        for link in self._links:
            if link.registered and now >= link.dead_at:
                link.unregister(now)
                link.unanswered = link.liveness  # said here, and not again below
                self._note(logging.WARNING, "broker lost", link=link.index, silent_seconds=now - link.heard_at)
                self._actions.append(ev.Redial(link.index))
            if self.warm and now >= link.send_at and not link.repeats(self._links):
                if link.asked and link.goes_unanswered():
                    self._note(logging.WARNING, "no answer from broker, trying on", link=link.index)
                if link.needs_redial(now):
                    self._actions.append(ev.Redial(link.index))
                self._speak(link, now)
        for held in [held for held in self.held.unfinished() if held.deadline and now >= held.deadline]:
            self._give_up(held)
            self._fail(held, DeadlineExceededError.code, "timeout_seconds went by at the worker", now)
        for held in [held for held in self.held.queued.values() if now >= self._orphaned_at(held)]:
            self._give_up(held)
            self.held.remove(held)
            self._note(logging.WARNING, "orphan dropped", request_id=held.id.hex())
        self._dropped(self.held.expire(now), "too old")
        return self._settle(now)

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called if no event comes; None: never."""
        if self._exited:
            return None
        times = [at] if (at := self._steps.hung_at()) != float("inf") else []
        times += [link.dead_at for link in self._links if link.registered]
        if self.warm:
            times += [link.send_at for link in self._links if not link.repeats(self._links)]
        times += [held.deadline for held in self.held.unfinished() if held.deadline]
        times += [self._orphaned_at(held) for held in self.held.queued.values()]
        if (expiry := self.held.expiry()) is not None:
            times.append(expiry)
        if self._quiet_since is not None:
            times.append(self._quiet_since + self._policy.drain_seconds)
        return min(times, default=None)

    # ---- from the brokers ----------------------------------------------------------------------------------

    def _received(self, link: Link, event: ev.Received, now: float) -> None:
        link.heard_at = now
        match event.message:
            case BrokerHeartbeat():
                self._heard_beat(link, event.message, now)
            case Work():
                self._work(link, event.message, event.frames, now)
            case Release():
                self._release(link, event.message.request_ids)
            case Resend():
                for request_id in event.message.request_ids:
                    if (held := self.held.get(request_id)) is not None:
                        self._resend(link, held)
            case Drain():
                self._drain("a broker asked for it", now)
            case Error():
                self._refused(link, event.message, now)

    def _malformed(self, link: Link, error: ProtocolError, now: float) -> None:
        link.heard_at = now
        self._note(logging.WARNING, "bad message", link=link.index, error=error.message)
        self._send(link, Error(code=error.code, message=cut(error.message), request_id=error.request_id))

    def _heard_beat(self, link: Link, beat: BrokerHeartbeat, now: float) -> None:
        link.announce(beat, now)
        if link.repeats(self._links):
            self._repeated(link, now)
        elif beat.session == 0:
            if not (link.asked and now < link.send_at):
                self._ask_again(link, now)
        elif link.asked:
            link.register(beat)
            self._note(logging.INFO, "registered", link=link.index, session=link.session, interval=link.interval)
            if self.draining:
                self._speak(link, now)  # READY has no state: say at once that no work is wanted
        elif not link.knows(beat):
            self._ask_again(link, now)

    def _repeated(self, link: Link, now: float) -> None:
        """Stay silent on a second link to one broker: it would register this process anew by turns."""
        if link.registered or link.asked:
            self._note(logging.WARNING, "two addresses lead to one broker, one is left unused", link=link.index)
        link.unregister(now)

    def _refused(self, link: Link, error: Error, now: float) -> None:
        refusal = f"{error.code}: {error.message}"
        if refusal != link.refusal:
            link.refusal = refusal
            self._note(logging.WARNING, "refused by broker", link=link.index, error=refusal)
        if error.code in (WorkerNameTakenError.code, UnauthorizedError.code) and link.registered:
            link.unregister(now)
            link.send_at = now + link.interval

    def _work(self, link: Link, work: Work, frames: tuple[bytes, ...], now: float) -> None:
        deadline = None if work.timeout_seconds is None else now + work.timeout_seconds
        held = self.held.get(work.request_id)
        if held is not None:
            held.attempt, held.deadline = work.attempt, deadline
            held.progress, held.preview = work.progress or work.preview, work.preview
            self._resend(link, held)
            return
        full = len(self.held.queued) >= MAX_IDS_PER_MESSAGE  # a holding could not list one more
        if self.draining or not self.warm or full:
            self._return(link, work.request_id, work.attempt)
            return
        self._numbers += 1
        held = Held(
            id=work.request_id,
            number=self._numbers,
            owner=link.index,
            attempt=work.attempt,
            progress=work.progress or work.preview,
            preview=work.preview,
            alone=work.alone,
            arrived=now,
            deadline=deadline,
        )
        self.held.add(held)
        try:
            held.model = self._catalogue.name(work.model)
        except ModelNotFoundError as error:
            self._fail(held, error.code, error.message, now)
            return
        self._begin(held, work, frames, now)

    def _begin(self, held: Held, work: Work, frames: tuple[bytes, ...], now: float) -> None:
        """Give a request to decoders or engine, or first ask for the model without which it can't be read."""
        try:
            request = read_request(frames)
            model = self._catalogue.get(held.model)
            if model is None:
                held.unread = (work, frames)
                self._actions.append(ev.Load(held.model))
                return
            held.unread = None
            model.check(request)
            if request.inputs:
                self._actions.append(ev.Decode(held.number, request, model, frames[1:]))
            else:
                self._give_to_engine(held, model.resolve(request))
        except InvalidRequestError as error:
            self._fail(held, error.code, error.message, now)

    def _give_to_engine(self, held: Held, request: ResolvedRequest) -> None:
        held.request = request
        self._gate.add(ev.Job(held.number, request, held.arrived, held.preview), alone=held.alone)

    def _resend(self, link: Link, held: Held) -> None:
        """The broker on this link is owed the answer from now on."""
        held.owner = link.index
        if held.answer is not None:
            if held.answer.attempt != held.attempt:
                held.answer = msgspec.structs.replace(held.answer, attempt=held.attempt)
            self._send(link, held.answer, held.images)

    def _release(self, link: Link, request_ids: list[bytes]) -> None:
        for request_id in request_ids:
            held = self.held.get(request_id)
            if held is None:
                continue
            if held.owner != link.index and self._links[held.owner].registered:
                continue  # another, living broker is owed this answer
            if held.answer is None:
                self._give_up(held)
            self.held.remove(held)

    def _drain(self, reason: str, now: float) -> None:
        if self.draining:
            return
        self.draining = True
        self._note(logging.INFO, "draining", reason=reason, running=len(self.held.running))
        for held in list(self.held.queued.values()):
            self._give_up(held)
            self.held.remove(held)
            if self._links[held.owner].registered:
                self._return(self._links[held.owner], held.id, held.attempt)
        self._tell_all(now)

    # ---- from the engine -----------------------------------------------------------------------------------

    def _warm(self, event: ev.Warm, now: float) -> None:
        self._catalogue.open(event.models, event.served)
        self._device = event.device
        self._seconds_per_image = event.seconds_per_image
        for link in self._links:
            self._speak(link, now)

    def _shelved(self, warm: tuple[str, ...], now: float) -> None:
        """Tell which models are loaded."""
        if warm != self._catalogue.warm:
            self._catalogue.warm = warm
            self._tell_all(now)

    def _loaded(self, event: ev.Loaded, now: float) -> None:
        self._steps.loaded(now)
        news = self._catalogue.learn(event.model)
        self._shelved(event.warm, now)
        for link in self._links:
            if news and link.registered and not self.draining:
                self._speak(link, now, anew=True)
        for held in list(self.held.queued.values()):
            if held.unread is not None and held.model == event.model.name:
                self._begin(held, *held.unread, now)

    def _load_failed(self, event: ev.LoadFailed, now: float) -> None:
        self._steps.loaded(now)
        self._shelved(event.warm, now)
        for held in list(self.held.unfinished()):
            if held.model == event.name:
                self._give_up(held)
                self._fail(held, GenerationFailedError.code, event.message, now)

    def _started(self, event: ev.Started, now: float) -> None:
        self._steps.step(now)
        for number in event.numbers:
            held = self.held.by_number(number)
            if held is None or held.request is None:
                continue  # released or given back on the way; the engine has its Cancel
            self.held.start(held)
            self._progress(held, 0, held.request.num_inference_steps)
        self._tell_all(now)

    def _stepped(self, event: ev.Stepped, now: float) -> None:
        self._steps.step(now)
        for number in event.numbers:
            if (held := self.held.by_number(number)) is not None:
                self._progress(held, event.step, event.steps)

    def _previewed(self, event: ev.Previewed) -> None:
        held = self.held.by_number(event.number)
        if held is not None and held.preview and len(event.image) <= MAX_PREVIEW_BYTES:
            self._progress(held, *held.step, (event.image,))

    def _finished(self, event: ev.Finished, now: float) -> None:
        held = self.held.by_number(event.number)
        if held is None or held.request is None:
            return
        longest = max(len(image) for image in event.images)
        if longest > MAX_FRAME_BYTES:
            message = f"an encoded image has {longest} bytes, at most {MAX_FRAME_BYTES} can be sent"
            self._fail(held, GenerationFailedError.code, message, now)
            return
        self.totals.requests += 1
        self._note(
            logging.INFO,
            "made",
            request_id=held.id.hex(),
            images=len(event.images),
            batch_size=event.batch_size,
            seconds=event.generation_seconds,
        )
        self._answer(held, result(held, event, self._identity.name), event.images, now)

    def _failed(self, event: ev.Failed, now: float) -> None:
        if (held := self.held.by_number(event.number)) is not None:
            self._fail(held, event.code, event.message, now)

    # ---- to the brokers ------------------------------------------------------------------------------------

    def _fail(self, held: Held, code: str, message: str, now: float) -> None:
        self.totals.failed += 1
        error = Error(code=code, message=cut(message), request_id=held.id, attempt=held.attempt)
        self._answer(held, error, (), now)

    def _answer(self, held: Held, answer: Result | Error, images: tuple[bytes, ...], now: float) -> None:
        self.outcomes["result" if isinstance(answer, Result) else answer.code] += 1
        was_running = held.id in self.held.running
        self._gate.discard(held.number)
        self._dropped(self.held.finish(held, answer, images, now), "too many")
        if self._links[held.owner].registered:
            self._send(self._links[held.owner], answer, images)
        if was_running and not self.held.running:
            for link in self._links:
                link.tell_soon(now)  # its owner has the answer; with other brokers it counts as depth

    def _return(self, link: Link, request_id: bytes, attempt: int) -> None:
        """Give a request back unmade. It is not held: if this is lost, the id is missed in the heartbeats."""
        self.outcomes[RETURNED] += 1
        message = "the worker is draining" if self.draining else "the worker can't take it now"
        self._send(link, Error(code=RETURNED, message=message, request_id=request_id, attempt=attempt))

    def _progress(self, held: Held, step: int, steps: int, frames: tuple[bytes, ...] = ()) -> None:
        held.step = (step, steps)
        link = self._links[held.owner]
        if held.progress and link.registered:
            self._send(link, Progress(request_id=held.id, attempt=held.attempt, step=step, steps=steps), frames)

    def _tell_all(self, now: float) -> None:
        """Heartbeat at once, to everyone who knows us."""
        for link in self._links:
            if link.registered:
                self._speak(link, now)

    def _ask_again(self, link: Link, now: float) -> None:
        if link.registered:
            self._note(logging.WARNING, "broker restarted", link=link.index)
        link.unregister(now)
        self._speak(link, now)

    def _speak(self, link: Link, now: float, *, anew: bool = False) -> None:
        """Send HEARTBEAT, or READY where we are not registered, or `anew`; both carry the whole holding."""
        if not self.warm:
            return
        link.send_at = now + link.interval
        condition = Condition(
            holding=self.held,
            stats=self.totals.for_wire(),
            seconds_per_image=self._seconds_per_image,
            step_age_seconds=self._steps.age(now),
            warm=self._catalogue.warm,
            draining=self.draining,
        )
        if link.registered and not anew:
            self._send(link, heartbeat(link, condition))
        else:
            link.asked = not link.registered
            message = ready(self._identity, self._catalogue.served, self._device, condition)
            self._send(link, message, (self._catalogue.capabilities(),))

    # ---- small things --------------------------------------------------------------------------------------

    def _settle(self, now: float) -> list[ev.Action]:
        """Let jobs through; end the process if the drain is complete; hand out the actions."""
        self._actions += self._gate.open(self.held.numbers)
        if self.draining and not self._exited and not self.held.queued and not self.held.running:
            if self._quiet_since is None:
                self._quiet_since = now
            overdue = now >= self._quiet_since + self._policy.drain_seconds
            if not self.held.finished or overdue:
                self._exited = True
                for link in self._links:
                    if link.registered:
                        self._send(link, Goodbye())
                self._note(logging.INFO, "drained", unreleased=len(self.held.finished))
                self._actions.append(ev.Exit(0))
        actions, self._actions = self._actions, []
        return actions

    def _hung(self, now: float) -> None:
        """End the process, without a GOODBYE: to the brokers this is a death, and counts towards poison."""
        if self._exited:
            return
        self._exited = True
        ids = ",".join(request_id.hex() for request_id in self.held.running)
        age = round(self._steps.age(now) or 0.0, 3)
        self._note(logging.CRITICAL, "device hung", step_age_seconds=age, running=ids or "released requests")
        self._actions.append(ev.Exit(DEVICE_HUNG_STATUS))

    def _orphaned_at(self, held: Held) -> float:
        """When a queued request is dropped because its broker stays silent."""
        return max(self._links[held.owner].silent_since, held.arrived) + self._policy.orphan_seconds

    def _give_up(self, held: Held) -> None:
        if not self._gate.discard(held.number):
            self._actions.append(ev.Cancel(held.number))

    def _dropped(self, answers: list[Held], why: str) -> None:
        for held in answers:
            self._note(logging.WARNING, "answer dropped", why=why, request_id=held.id.hex())

    def _send(self, link: Link, message: WorkerMessage, frames: tuple[bytes, ...] = ()) -> None:
        self._actions.append(ev.Send(link.index, message, frames))

    def _note(self, level: int, text: str, **fields: object) -> None:
        self._actions.append(ev.Note(level, text, fields))

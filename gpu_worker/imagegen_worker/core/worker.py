"""The worker's core: events in, actions out. `docs/protocol.md` §4 explains the rules.

The same events at the same times always give the same actions: no sockets, clock, threads or randomness.
"""

import logging
from dataclasses import replace
from math import inf

from imagegen_protocol.costs import CostModel
from imagegen_protocol.messages import BrokerHeartbeat, Chunk, Drain, Error, Fetch, Release, Resend, Work
from imagegen_worker.core import events as ev
from imagegen_worker.core.broker_session import BrokerSessions
from imagegen_worker.core.requests import RequestHandler
from imagegen_worker.core.state import WorkerIdentity, WorkerLimits, WorkerState

DEVICE_HUNG_STATUS = 70
"""Exit status of a worker whose device hangs (EX_SOFTWARE); a new process may work."""


class WorkerCore:
    """One worker, and its sessions with any number of brokers, which are numbered from 0."""

    def __init__(self, identity: WorkerIdentity, *, brokers: int, limits: WorkerLimits, now: float) -> None:
        self._state = WorkerState(identity, limits)
        self._brokers = BrokerSessions(self._state, brokers, now)
        self._requests = RequestHandler(self._state, self._brokers)
        self._drained_at: float | None = None
        self._exited = False
        self.held = self._state.held
        self.counters = self._state.counters

    @property
    def ready(self) -> bool:
        """Whether the engine has started."""
        return bool(self._state.models.names)

    @property
    def draining(self) -> bool:
        """Whether the worker accepts no more requests."""
        return self._state.draining

    @property
    def loaded_models(self) -> tuple[str, ...]:
        """The models that are loaded or being loaded."""
        return self._state.models.loaded

    @property
    def costs(self) -> dict[str, CostModel]:
        """The measured costs by model."""
        return self._state.costs.all()

    @property
    def registered(self) -> int:
        """Number of brokers that have registered this worker."""
        return len(self._brokers.registered())

    @property
    def seconds_per_image(self) -> float | None:
        """The speed that the backend reported last; None while unknown."""
        return self._state.seconds_per_image

    def step_age(self, now: float) -> float | None:
        """Return the seconds since the device's last step; None while no step is expected."""
        return self._state.watchdog.age(now)

    def set_metrics_address(self, address: str) -> None:
        """Set the address of the metrics, as HOST:PORT; call it before the engine starts."""
        self._state.identity = replace(self._state.identity, http=address)

    # ---- the interface of every core -------------------------------------------------------------------------

    def handle(self, event: ev.Event, now: float) -> list[ev.Action]:
        """Handle an event at monotonic time `now`; return the actions to perform, in order."""
        match event:
            case ev.Tick():
                self._tick(now)
            case ev.Received():
                self._received(event, now)
            case ev.Malformed():
                self._brokers.on_malformed(self._brokers[event.broker], event.error)
            case ev.DrainRequested():
                self._drain(event.reason, now)
            case ev.EngineReady() | ev.ModelLoading() | ev.ModelLoaded() | ev.ModelLoadFailed():
                self._model_event(event, now)
            case ev.CallDone():
                self.counters.add_call(event)
                self._state.seconds_per_image = event.seconds_per_image
            case ev.CostsMeasured():
                self._state.costs.update(event.model, event.costs)
            case ev.CallFailed():
                self.counters.add_failed_call(event)
                if event.split:
                    self._state.log(logging.WARNING, "out of memory, batch split in halves", images=event.images)
            case ev.Idle():
                self._state.watchdog.stop()
            case _:
                if isinstance(event, ev.Started | ev.Stepped):
                    self._state.watchdog.step(now)
                self._requests.on_job_event(event, now)
        return self._finish(now)

    def next_deadline(self) -> float | None:
        """Return when `Tick` is due if no other event comes; None: never."""
        if self._exited:
            return None
        times = [*self._brokers.deadlines(), *self._requests.deadlines()]
        if (hung_at := self._state.watchdog.deadline()) != inf:
            times.append(hung_at)
        if self._drained_at is not None:
            times.append(self._leaves_at(self._drained_at))
        return min(times, default=None)

    # ---- events ----------------------------------------------------------------------------------------------

    def _tick(self, now: float) -> None:
        if now >= self._state.watchdog.deadline():
            self._exit_hung(now)
        if not self._exited:
            self._brokers.check_deadlines(now)
            self._requests.check_deadlines(now)

    def _received(self, event: ev.Received, now: float) -> None:
        session = self._brokers[event.broker]
        session.received_at = now
        match event.message:
            case BrokerHeartbeat():
                self._brokers.on_heartbeat(session, event.message, now)
            case Work():
                self._requests.on_work(session, event.message, event.frames, now)
            case Release():
                self._requests.on_release(session, event.message.request_ids)
            case Resend():
                for request_id in event.message.request_ids:
                    if (held := self.held.get(request_id)) is not None:
                        self._requests.on_resend(session, held, now)
            case Fetch():
                self._requests.on_fetch(session, event.message, now)
            case Chunk():
                self._requests.on_chunk(session, event.message, event.frames, now)
            case Drain():
                self._drain("requested by a broker", now)
            case Error():
                self._brokers.on_error(session, event.message, now)

    def _drain(self, reason: str, now: float) -> None:
        if not self.draining:
            self._state.draining = True
            self._state.log(logging.INFO, "drain started", reason=reason, running=len(self.held.running))
            self._requests.return_queued()
            self._brokers.report_now(now)

    def _model_event(self, event: ev.ModelEvent, now: float) -> None:
        state = self._state
        match event:
            case ev.EngineReady():
                state.models.initialise(event.models, event.served)
                state.device = event.device
                state.seconds_per_image = event.seconds_per_image
                if event.load_seconds is not None:
                    state.costs.set_load_seconds(event.models[0].name, event.load_seconds)
                names = ",".join(model.name for model in event.models)
                state.log(logging.INFO, "engine started", device=event.device, models=names)
                self._brokers.report_start(now)
            case ev.ModelLoading():
                state.watchdog.pause()
                self._set_loaded(event.loaded, now)
            case ev.ModelLoaded():
                state.watchdog.resume(now)
                changed = state.models.update(event.model)
                if event.seconds is not None:
                    state.costs.set_load_seconds(event.model.name, event.seconds)
                self._set_loaded(event.loaded, now)
                if changed and not self.draining:
                    self._brokers.report_capabilities(event.model.name)
                self._requests.on_model_loaded(event.model.name, now)
            case ev.ModelLoadFailed():
                state.watchdog.resume(now)
                self._set_loaded(event.loaded, now)
                self._requests.on_model_failed(event.name, event.message, now)

    def _set_loaded(self, names: tuple[str, ...], now: float) -> None:
        if names != self._state.models.loaded:
            self._state.models.loaded = names
            self._state.loras.keep(names)
            self._brokers.report_now(now)

    # ---- the end of an event, and of the process -------------------------------------------------------------

    def _finish(self, now: float) -> list[ev.Action]:
        """Fetch payloads, admit jobs, exit if the drain is complete, and return the collected actions."""
        self._requests.fetch_payloads(now)
        self._requests.admit_jobs()
        if self.draining and not self._exited and not self.held.queued and not self.held.running:
            if self._drained_at is None:
                self._drained_at = now
            if not self.held.finished or now >= self._leaves_at(self._drained_at):
                self._exited = True
                self._brokers.send_goodbye()
                self._state.log(logging.INFO, "drained", unacknowledged=len(self.held.finished))
                self._state.actions.append(ev.Exit(0))
        actions, self._state.actions = self._state.actions, []
        return actions

    def _leaves_at(self, drained_at: float) -> float:
        """Return when a drained worker exits although answers are unacknowledged."""
        return max(drained_at, self.held.last_activity) + self._state.limits.drain_seconds

    def _exit_hung(self, now: float) -> None:
        """End the process without GOODBYE, so that brokers count a death and detect poison requests."""
        if self._exited:
            return
        self._exited = True
        ids = ",".join(request_id.hex() for request_id in self.held.running)
        age = round(self.step_age(now) or 0.0, 3)
        self._state.log(logging.CRITICAL, "device hung", step_age_seconds=age, running=ids or "released requests")
        self._state.actions.append(ev.Exit(DEVICE_HUNG_STATUS))

"""The supervisor's core: exits of processes, signals and time in; starts, signals and the exit out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from signal import SIGKILL, SIGTERM, SIGUSR1, Signals

from imagegen_worker.core.events import Exit, Tick

PERMANENT = {
    0: "drained",
    2: "invalid setting",
    78: "model cannot be loaded",
}
"""Exit statuses after which a restart would end the same way, with the reason; such a worker is not restarted."""
DRAIN_SIGNAL = SIGUSR1
"""Asks a worker to drain. Unlike a second SIGTERM, repeating it does not end the worker."""
_STOPPED_STATUSES = (0, 128 + SIGTERM, 128 + DRAIN_SIGNAL)
"""Exit statuses of a worker that drained, or that was stopped before it had installed its signal handlers."""
_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """Exponential backoff between restarts, in seconds.

    The delay doubles with each failure in a row, from `first_delay` to `max_delay`; a worker that ran for
    `reset_after` seconds resets the count.
    """

    first_delay: float = 1.0
    max_delay: float = 60.0
    reset_after: float = 300.0


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker's process has exited; `status` is 128 + n if signal n killed it."""

    worker: int
    status: int


@dataclass(frozen=True, slots=True)
class Signalled:
    """The supervisor received a signal that asks it to stop."""

    number: int


Event = Exited | Signalled | Tick


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker's process."""

    worker: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to a worker's process."""

    worker: int
    number: int


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write a log line; `level` as in `logging`. `worker`: the worker whose fields to add."""

    level: int
    text: str
    worker: int | None = None
    fields: dict[str, object] = field(default_factory=dict)


Action = Start | Signal | LogEvent | Exit


@dataclass(slots=True)
class _Worker:
    """A worker that runs since `started_at`, or is to be started at `start_at`, or, with neither, has ended."""

    started_at: float | None = None
    start_at: float | None = None
    failures: int = 0


class SupervisorCore:
    """Starts workers, restarts failed ones after a delay, and stops all on a signal; numbered from 0."""

    def __init__(self, workers: int, policy: RestartPolicy, now: float) -> None:
        self._policy = policy
        self._workers = [_Worker(start_at=now) for _ in range(workers)]
        self._stopping = False
        self._stop_signalled = False
        self._status = 0
        """The highest exit status so far."""

    def handle(self, event: Event, now: float) -> list[Action]:
        """Handle an event at monotonic time `now`; return the actions to perform, in order."""
        match event:
            case Tick():
                return self._start_due(now)
            case Exited(worker, status):
                return self._exited(worker, status, now)
            case Signalled(number):
                return self._signalled(number)

    def next_deadline(self) -> float | None:
        """Return when `Tick` is due if no other event comes; None: never."""
        return min((worker.start_at for worker in self._workers if worker.start_at is not None), default=None)

    def _start_due(self, now: float) -> list[Action]:
        actions: list[Action] = []
        for number, worker in enumerate(self._workers):
            if worker.start_at is not None and worker.start_at <= now:
                worker.started_at, worker.start_at = now, None
                actions.append(Start(number))
        return actions

    def _exited(self, number: int, status: int, now: float) -> list[Action]:
        worker = self._workers[number]
        up = 0.0 if worker.started_at is None else now - worker.started_at
        worker.started_at = None
        if self._stopping:
            stopped = status in _STOPPED_STATUSES
            self._status = max(self._status, 0 if stopped else status)
            level = logging.INFO if stopped else logging.ERROR
            return [LogEvent(level, "worker exited", number, {"status": status}), *self._exit_if_all_ended()]
        if status in PERMANENT:
            self._status = max(self._status, status)
            level = logging.CRITICAL if status else logging.INFO
            fields = {"status": status, "reason": PERMANENT[status]}
            return [LogEvent(level, "worker exited, not restarted", number, fields), *self._exit_if_all_ended()]
        worker.failures = 1 if up >= self._policy.reset_after else worker.failures + 1
        doublings = min(worker.failures - 1, _MAX_DOUBLINGS)
        delay = min(self._policy.first_delay * 2**doublings, self._policy.max_delay)
        worker.start_at = now + delay
        fields = {"status": status, "up_seconds": up, "failures": worker.failures, "restart_seconds": delay}
        return [LogEvent(logging.ERROR, "worker failed, restart scheduled", number, fields)]

    def _signalled(self, number: int) -> list[Action]:
        stops = number != DRAIN_SIGNAL
        if stops and self._stop_signalled:
            return self._kill(number)
        self._stop_signalled |= stops
        return [] if self._stopping else self._drain(number)

    def _drain(self, signal: int) -> list[Action]:
        self._stopping, self._status = True, 0
        for worker in self._workers:
            worker.start_at = None
        running = self._running()
        fields: dict[str, object] = {"signal": Signals(signal).name, "running": len(running)}
        return [
            LogEvent(logging.INFO, "drain of all workers started", fields=fields),
            *(Signal(number, DRAIN_SIGNAL) for number in running),
            *self._exit_if_all_ended(),
        ]

    def _kill(self, signal: int) -> list[Action]:
        text = "second signal received, killing all workers"
        line = LogEvent(logging.CRITICAL, text, fields={"signal": Signals(signal).name})
        return [line, *(Signal(number, SIGKILL) for number in self._running()), Exit(128 + signal)]

    def _running(self) -> Sequence[int]:
        return [number for number, worker in enumerate(self._workers) if worker.started_at is not None]

    def _exit_if_all_ended(self) -> list[Action]:
        ended = all(worker.started_at is None and worker.start_at is None for worker in self._workers)
        return [Exit(self._status)] if ended else []

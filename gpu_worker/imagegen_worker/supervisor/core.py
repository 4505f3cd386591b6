"""The supervisor's core: ends of processes, signals and times in; starts, signals and the exit out."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from signal import SIGKILL, SIGTERM, SIGUSR1, Signals

PERMANENT = {
    0: "it has drained",
    2: "a setting is wrong",
    78: "its model can't be loaded",
}
"""Exit statuses after which a start would end in the same way: the worker is not started again."""
DRAIN_SIGNAL = SIGUSR1
"""Asks a worker to drain, however often: SIGTERM may have come to it as well, and a second one would end it."""
_ENDS_OF_A_STOP = (0, 128 + SIGTERM, 128 + DRAIN_SIGNAL)
"""Statuses of a worker that drained, or was too young to have anything to drain."""
_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """When a worker that died is started again, in seconds.

    `first_wait`, doubled with each death in a row, up to `longest_wait`; after `steady_seconds` of life the row
    begins anew.
    """

    first_wait: float = 1.0
    longest_wait: float = 60.0
    steady_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Exited:
    """A worker's process has ended; `status` as the shell knows it: 128 + n for signal n."""

    worker: int
    status: int


@dataclass(frozen=True, slots=True)
class Signalled:
    """Somebody wants the supervisor to end."""

    number: int


Event = Exited | Signalled


@dataclass(frozen=True, slots=True)
class Start:
    """Start a worker's process."""

    worker: int


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a worker's process a signal."""

    worker: int
    number: int


@dataclass(frozen=True, slots=True)
class Note:
    """Tell the operator something, about a worker where one is given."""

    level: int
    text: str
    worker: int | None = None
    fields: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exit:
    """End the supervisor."""

    status: int


Action = Start | Signal | Note | Exit


@dataclass(slots=True)
class _Worker:
    """Running since `started`, or waiting for `start_at`, or over: then it has neither."""

    started: float | None = None
    start_at: float | None = None
    deaths: int = 0


class SupervisorCore:
    """So many workers, numbered from 0; each lives and dies without the others."""

    def __init__(self, workers: int, policy: Policy, now: float) -> None:
        self._policy = policy
        self._workers = [_Worker(start_at=now) for _ in range(workers)]
        self._stopping = False
        self._told_to_end = False
        self._worst = 0

    def handle(self, event: Event, now: float) -> list[Action]:
        """Take an event in; return what is to be done for it, in order."""
        match event:
            case Exited(worker, status):
                return self._exited(worker, status, now)
            case Signalled(number):
                return self._signalled(number)

    def tick(self, now: float) -> list[Action]:
        """Start what is due by `now`."""
        actions: list[Action] = []
        for number, worker in enumerate(self._workers):
            if worker.start_at is not None and worker.start_at <= now:
                worker.started, worker.start_at = now, None
                actions.append(Start(number))
        return actions

    def next_deadline(self) -> float | None:
        """Return when `tick` must be called if no event comes; None: never."""
        return min((worker.start_at for worker in self._workers if worker.start_at is not None), default=None)

    def _exited(self, number: int, status: int, now: float) -> list[Action]:
        worker = self._workers[number]
        up = 0.0 if worker.started is None else now - worker.started
        worker.started = None
        if self._stopping:
            drained = status in _ENDS_OF_A_STOP
            self._worst = max(self._worst, 0 if drained else status)
            level = logging.INFO if drained else logging.ERROR
            return [Note(level, "worker ended", number, {"status": status}), *self._if_over()]
        if status in PERMANENT:
            self._worst = max(self._worst, status)
            level = logging.CRITICAL if status else logging.INFO
            told = {"status": status, "reason": PERMANENT[status]}
            return [Note(level, "worker ended, not started again", number, told), *self._if_over()]
        worker.deaths = 1 if up >= self._policy.steady_seconds else worker.deaths + 1
        doublings = min(worker.deaths - 1, _MAX_DOUBLINGS)
        wait = min(self._policy.first_wait * 2**doublings, self._policy.longest_wait)
        worker.start_at = now + wait
        told = {"status": status, "up_seconds": up, "deaths_in_a_row": worker.deaths, "wait_seconds": wait}
        return [Note(logging.ERROR, "worker died, to be started again", number, told)]

    def _signalled(self, number: int) -> list[Action]:
        ends = number != DRAIN_SIGNAL
        if ends and self._told_to_end:
            return self._kill(number)
        self._told_to_end |= ends
        return [] if self._stopping else self._stop(number)

    def _stop(self, signal: int) -> list[Action]:
        self._stopping, self._worst = True, 0
        for worker in self._workers:
            worker.start_at = None
        running = self._running()
        note = Note(
            logging.INFO, "draining all workers", fields={"signal": _name(signal), "running": len(running)}
        )
        return [note, *(Signal(number, DRAIN_SIGNAL) for number in running), *self._if_over()]

    def _kill(self, signal: int) -> list[Action]:
        note = Note(logging.CRITICAL, "second signal, killing all workers", fields={"signal": _name(signal)})
        return [note, *(Signal(number, SIGKILL) for number in self._running()), Exit(128 + signal)]

    def _running(self) -> Sequence[int]:
        return [number for number, worker in enumerate(self._workers) if worker.started is not None]

    def _if_over(self) -> list[Action]:
        over = all(worker.started is None and worker.start_at is None for worker in self._workers)
        return [Exit(self._worst)] if over else []


def _name(signal: int) -> str:
    return Signals(signal).name

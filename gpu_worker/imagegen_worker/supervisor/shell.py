"""The supervisor's shell: starts processes, waits for their ends and for signals, and asks the core what to do."""

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

from imagegen_common.logs import log
from imagegen_worker.supervisor.core import (
    DRAIN_SIGNAL,
    Action,
    Exit,
    Exited,
    Note,
    Policy,
    Signal,
    Signalled,
    Start,
    SupervisorCore,
)

CANT_START_STATUS = 71
"""Stands for the status of a process that could not be started (EX_OSERR)."""
REAP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_STOPPING = (signal.SIGTERM, signal.SIGINT, DRAIN_SIGNAL)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """How one worker's process is started; `about` is told in log lines of it."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, object] = field(default_factory=dict)


class Supervisor:
    """Runs one process for each child. `run` returns the exit status; call it on the main thread."""

    def __init__(self, children: Sequence[Child], policy: Policy | None = None) -> None:
        self._children = children
        self._core = SupervisorCore(len(children), policy or Policy(), _now())
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._signals: list[int] = []
        self._status: int | None = None

    def run(self) -> int:
        """Supervise until every worker has ended for good, or a signal has ended them."""
        log(_log, logging.INFO, "supervisor starts", workers=len(self._children), pid=os.getpid())
        with contextlib.ExitStack() as stack:
            wake = self._catch_signals(stack)
            while self._status is None:
                self._perform(self._core.tick(_now()))
                if self._status is None:
                    select.select([wake], [], [], self._wait_seconds())
                    with contextlib.suppress(BlockingIOError):
                        wake.recv(4096)
                self._take_ends()
                self._take_signals()
            self._reap()
        log(_log, logging.CRITICAL if self._status else logging.INFO, "supervisor exits", status=self._status)
        return self._status

    def _wait_seconds(self) -> float | None:
        deadline = self._core.next_deadline()
        return None if deadline is None else max(deadline - _now(), 0.0)

    def _take_ends(self) -> None:
        for worker, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[worker]
                self._perform(self._core.handle(Exited(worker, code if code >= 0 else 128 - code), _now()))

    def _take_signals(self) -> None:
        while self._signals and self._status is None:
            self._perform(self._core.handle(Signalled(self._signals.pop(0)), _now()))

    def _reap(self) -> None:
        """Wait for the killed; one whose driver hangs stays behind."""
        end = _now() + REAP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - _now(), 0.0))

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(worker):
                    self._start(worker)
                case Signal(worker, number):
                    if worker in self._processes:
                        self._processes[worker].send_signal(number)
                case Note(level, text, about, fields):
                    known = {} if about is None else self._children[about].about
                    log(_log, level, text, **{**known, **fields})
                case Exit(status):
                    self._status = status

    def _start(self, worker: int) -> None:
        child = self._children[worker]
        try:
            process = subprocess.Popen(
                child.command,
                env={**os.environ, **child.environment},
                stdin=subprocess.DEVNULL,
                preexec_fn=_dying_with(os.getpid()),
                start_new_session=True,  # a Ctrl-C in the terminal comes through us, once
            )
        except (OSError, subprocess.SubprocessError) as error:
            log(_log, logging.ERROR, "worker can't be started", **child.about, error=error)
            self._perform(self._core.handle(Exited(worker, CANT_START_STATUS), _now()))
            return
        self._processes[worker] = process
        log(_log, logging.INFO, "worker started", **child.about, pid=process.pid)

    def _catch_signals(self, stack: contextlib.ExitStack) -> socket.socket:
        """Return the socket that is readable after a signal."""
        wake, wakes = socket.socketpair()
        for end in (wake, wakes):
            stack.callback(end.close)
            end.setblocking(False)
        fd = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, fd)
        for number in (*_STOPPING, signal.SIGCHLD):
            stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
        return wake

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in _STOPPING:
            self._signals.append(number)


def _now() -> float:
    return time.monotonic()


def _dying_with(parent: int) -> Callable[[], None]:
    """Return what a new process calls, so that the kernel kills it when `parent` ends, however it does."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def die_with_parent() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the kernel was told
            os._exit(128 + signal.SIGKILL)

    return die_with_parent

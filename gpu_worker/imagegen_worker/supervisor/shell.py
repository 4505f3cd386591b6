"""The supervisor's shell: starts processes, waits for exits and signals, and performs the core's actions."""

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
from imagegen_common.signals import ignore_hangup
from imagegen_worker.core.events import Exit, Tick
from imagegen_worker.supervisor.core import (
    DRAIN_SIGNAL,
    Action,
    Event,
    Exited,
    LogEvent,
    RestartPolicy,
    Signal,
    Signalled,
    Start,
    SupervisorCore,
)

START_FAILED_STATUS = 71
"""Status reported to the core for a process that could not be started (EX_OSERR)."""
REAP_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, DRAIN_SIGNAL)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCommand:
    """The command line and environment of a worker's process; `log_fields` are added to its log lines."""

    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    log_fields: Mapping[str, object] = field(default_factory=dict)


class Supervisor:
    """Runs one process for each command. `run` returns the exit status; call it on the main thread."""

    def __init__(self, commands: Sequence[WorkerCommand], policy: RestartPolicy | None = None) -> None:
        self._commands = commands
        self._core = SupervisorCore(len(commands), policy or RestartPolicy(), time.monotonic())
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._signals: list[int] = []
        self._status: int | None = None

    def run(self) -> int:
        """Supervise until no worker is left to run or restart, or a second signal has killed them."""
        log(_log, logging.INFO, "supervisor started", workers=len(self._commands), pid=os.getpid())
        with contextlib.ExitStack() as stack:
            wake = self._catch_signals(stack)
            while self._status is None:
                self._handle(Tick())
                if self._status is None:
                    select.select([wake], [], [], self._wait_seconds())
                    with contextlib.suppress(BlockingIOError):
                        wake.recv(4096)
                self._handle_exits()
                while self._signals and self._status is None:
                    self._handle(Signalled(self._signals.pop(0)))
            self._reap()
        log(_log, logging.CRITICAL if self._status else logging.INFO, "supervisor exited", status=self._status)
        return self._status

    def _handle(self, event: Event) -> None:
        self._perform(self._core.handle(event, time.monotonic()))

    def _wait_seconds(self) -> float | None:
        deadline = self._core.next_deadline()
        return None if deadline is None else max(deadline - time.monotonic(), 0.0)

    def _handle_exits(self) -> None:
        for worker, process in list(self._processes.items()):
            code = process.poll()
            if code is not None:
                del self._processes[worker]
                self._handle(Exited(worker, code if code >= 0 else 128 - code))

    def _reap(self) -> None:
        """Wait for killed processes, for a limited time: one may hang in its driver."""
        end = time.monotonic() + REAP_SECONDS
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.0))

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start(worker):
                    self._start(worker)
                case Signal(worker, number):
                    if worker in self._processes:
                        self._processes[worker].send_signal(number)
                case LogEvent(level, text, number, fields):
                    own = {} if number is None else self._commands[number].log_fields
                    log(_log, level, text, **{**own, **fields})
                case Exit(status):
                    self._status = status

    def _start(self, worker: int) -> None:
        command = self._commands[worker]
        try:
            process = subprocess.Popen(
                command.command,
                env={**os.environ, **command.environment},
                stdin=subprocess.DEVNULL,
                preexec_fn=_die_with_parent(os.getpid()),
                start_new_session=True,  # the supervisor forwards a Ctrl-C of the terminal, once
            )
        except (OSError, subprocess.SubprocessError) as error:
            log(_log, logging.ERROR, "worker start failed", **command.log_fields, error=error)
            self._handle(Exited(worker, START_FAILED_STATUS))
            return
        self._processes[worker] = process
        log(_log, logging.INFO, "worker process started", **command.log_fields, pid=process.pid)

    def _catch_signals(self, stack: contextlib.ExitStack) -> socket.socket:
        """Return a socket that becomes readable after a signal."""
        reader, writer = socket.socketpair()
        for end in (reader, writer):
            stack.callback(end.close)
            end.setblocking(False)
        fd = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        stack.callback(signal.set_wakeup_fd, fd)
        for number in (*_STOP_SIGNALS, signal.SIGCHLD):
            stack.callback(signal.signal, number, signal.signal(number, self._on_signal))
        stack.callback(signal.signal, signal.SIGHUP, ignore_hangup(_log))
        return reader

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in _STOP_SIGNALS:
            self._signals.append(number)


def _die_with_parent(parent: int) -> Callable[[], None]:
    """Return a function for the new process to call, after which the kernel kills it when `parent` ends."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def request_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent ended before the call
            os._exit(128 + signal.SIGKILL)

    return request_signal

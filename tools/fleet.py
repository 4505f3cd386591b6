"""A fleet of real processes on this machine, for the demo, the tests and the benchmarks.

No child outlives its parent, however the parent dies: the kernel kills it (PR_SET_PDEATHSIG).
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, NamedTuple, Self

from imagegen_client import Client

_PR_SET_PDEATHSIG = 1
_TERMINATION_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defer signals until after the block: the hooks of a fork would swallow the exception."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    usual = {number: signal.signal(number, lambda n, frame: received.append(n)) for number in _TERMINATION_SIGNALS}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if received and callable(handler := usual[signal.Signals(received[0])]):
        handler(received[0], None)


class FleetError(RuntimeError):
    """A process of the fleet exited, or a wait timed out."""


class Endpoints(NamedTuple):
    """Addresses of a broker: ZeroMQ endpoints, and the URL `http`."""

    frontend: str
    backend: str
    http: str


FREE_PORTS = Endpoints("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "http://127.0.0.1:0")


class Fleet:
    """Brokers and workers as child processes, which stop when the context ends.

    `log_folder`: folder for one log file per process; None for this process's stderr. `environment`: additional
    environment variables of all processes.
    """

    def __init__(self, log_folder: Path | None = None, environment: Mapping[str, str] | None = None) -> None:
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self.brokers: dict[str, Endpoints] = {}
        self._log_folder = log_folder
        self._environment = dict(environment or {})
        self._logs: list[IO[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def frontend(self) -> str:
        """Frontend endpoint of the first broker."""
        return next(iter(self.brokers.values())).frontend

    @property
    def http(self) -> str:
        """URL of the first broker."""
        return next(iter(self.brokers.values())).http

    def start_broker(
        self, *arguments: str, name: str = "broker", at: Endpoints | None = None, prefix: Sequence[str] = ()
    ) -> Endpoints:
        """Start `imagegen-broker` at given endpoints, at those of its last run, or on free ports."""
        place = at or self.brokers.get(name, FREE_PORTS)
        listen = ("--frontend", place.frontend, "--backend", place.backend)
        http = place.http.removeprefix("http://")
        command = ["imagegen-broker", *listen, "--http", http, *arguments]
        process = self.spawn(name, command, stdout=subprocess.PIPE, prefix=prefix)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise FleetError(f"{name} exited with status {process.wait()}; see its log")
        endpoints = dict(part.split("=", 1) for part in line.split())
        self.brokers[name] = Endpoints(endpoints["frontend"], endpoints["backend"], endpoints["http"])
        return self.brokers[name]

    def start_worker(
        self,
        name: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start `imagegen-worker` with a name, connected to every broker of this fleet."""
        brokers = [word for place in self.brokers.values() for word in ("--broker", place.backend)]
        command = ["imagegen-worker", *brokers, "--name", name, *arguments]
        self.spawn(name, command, environment=environment, prefix=prefix)

    def spawn(
        self,
        name: str,
        command: Sequence[str],
        *,
        stdout: int | None = None,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> subprocess.Popen[str]:
        """Start one of the project's commands in its own process group, out of reach of the terminal's Ctrl-C.

        `prefix`: a command that runs it elsewhere, such as in another network namespace.
        """
        program = str(Path(sys.executable).with_name(command[0]))
        log: IO[str] | None = None
        if self._log_folder is not None:
            self._log_folder.mkdir(parents=True, exist_ok=True)
            log = (self._log_folder / f"{name}.log").open("a")
            self._logs.append(log)
        with _uninterrupted():
            process = subprocess.Popen(
                [*prefix, program, *command[1:]],
                stdout=stdout if stdout is not None else log,
                stderr=log,
                text=True,
                env={**os.environ, **self._environment, **(environment or {})},
                preexec_fn=_die_with_parent,
                start_new_session=True,
            )
            self.processes[name] = process
        return process

    def wait_for_workers(self, client: Client, count: int, timeout: float = 240.0) -> None:
        """Wait until `count` workers are registered. Raises `FleetError` as `wait_until` does."""
        self.wait_until(lambda: client.stats(timeout=timeout).num_gpus >= count, f"{count} workers", timeout)

    def wait_until(self, holds: Callable[[], bool], what: str, timeout: float = 120.0) -> None:
        """Poll until a condition holds. Raises `FleetError` if a process exits, or after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not holds():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise FleetError(f"{name} exited with status {process.returncode} before there were {what}")
            if time.monotonic() > end:
                raise FleetError(f"no {what} after {timeout:.0f} s")
            threading.Event().wait(0.05)

    def kill(self, name: str) -> None:
        """Kill a process with SIGKILL and forget it."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()

    def terminate(self, name: str, timeout: float = 120.0) -> int:
        """Terminate a process with SIGTERM, and return its exit status."""
        process = self.processes.pop(name)
        process.terminate()
        status = process.wait(timeout)
        if process.stdout is not None:
            process.stdout.close()
        return status

    def stop(self, timeout: float = 10.0) -> None:
        """Stop all processes, brokers last; kill those that do not exit within `timeout` seconds."""
        brokers = [name for name in self.processes if name in self.brokers]
        # Brokers last: a draining worker waits for the release of its answers.
        for group in ([name for name in self.processes if name not in brokers], brokers):
            for name in group:
                self.processes[name].terminate()
            end = time.monotonic() + timeout
            for name in group:
                process = self.processes.pop(name)
                try:
                    process.wait(max(0.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        for log in self._logs:
            log.close()
        self._logs.clear()

"""A fleet of real processes on this machine, for the demo, the tests and the benchmarks.

Whatever happens to the parent, no child outlives it: each is told by the kernel to die with its parent.
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
_ENDING = (signal.SIGINT, signal.SIGTERM)
_libc = ctypes.CDLL(None, use_errno=True)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Put an interruption off until after the block: amid the hooks of a fork its exception would be swallowed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    usual = {number: signal.signal(number, lambda n, frame: came.append(n)) for number in _ENDING}
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    if came and callable(handler := usual[signal.Signals(came[0])]):
        handler(came[0], None)


class FleetError(RuntimeError):
    """A process of the fleet ended, or did not start in time."""


class Endpoints(NamedTuple):
    """Where a broker listens; `http` is an URL, all others are ZeroMQ endpoints."""

    frontend: str
    backend: str
    http: str


FREE_PORTS = Endpoints("tcp://127.0.0.1:0", "tcp://127.0.0.1:0", "http://127.0.0.1:0")


class Fleet:
    """Brokers and workers as child processes; leaving the context stops them all.

    `log_folder` gets one file a process; without it they write to this process's stderr. `environment` is added to
    this process's own for each of them.
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
        """Where clients dial the first broker."""
        return next(iter(self.brokers.values())).frontend

    @property
    def http(self) -> str:
        """The URL of the first broker."""
        return next(iter(self.brokers.values())).http

    def start_broker(
        self, *arguments: str, name: str = "broker", at: Endpoints | None = None, prefix: Sequence[str] = ()
    ) -> Endpoints:
        """Start `imagegen-broker`: where a broker of this name was before, else where told, else on free ports."""
        place = at or self.brokers.get(name, FREE_PORTS)
        listen = ("--frontend", place.frontend, "--backend", place.backend)
        http = place.http.removeprefix("http://")
        command = ["imagegen-broker", *listen, "--http", http, *arguments]
        process = self.spawn(name, command, stdout=subprocess.PIPE, prefix=prefix)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise FleetError(f"{name} ended with status {process.wait()}; its log says why")
        said = dict(part.split("=", 1) for part in line.split())
        self.brokers[name] = Endpoints(said["frontend"], said["backend"], said["http"])
        return self.brokers[name]

    def start_worker(
        self,
        name: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start `imagegen-worker` under a name, dialling every broker of this fleet."""
        dial = [word for place in self.brokers.values() for word in ("--broker", place.backend)]
        command = ["imagegen-worker", *dial, "--name", name, *arguments]
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
        """Start one of the project's commands in a process group of its own, out of the terminal's Ctrl-C.

        `prefix`: a command that runs it elsewhere, as in another network namespace.
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
        """Ask until something holds. Raises `FleetError` if a process ended, or after `timeout` seconds."""
        end = time.monotonic() + timeout
        while not holds():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise FleetError(f"{name} ended with status {process.returncode} before there were {what}")
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
        """Ask a process to end, and return its exit status."""
        process = self.processes.pop(name)
        process.terminate()
        status = process.wait(timeout)
        if process.stdout is not None:
            process.stdout.close()
        return status

    def stop(self, timeout: float = 10.0) -> None:
        """Stop everything, workers first; kill what does not end within `timeout` seconds."""
        brokers = [name for name in self.processes if name in self.brokers]
        # Brokers last: a worker that drains waits for their word that its answers have arrived.
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

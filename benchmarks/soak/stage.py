"""The processes of a soak: which there are, and when which is started again."""

import itertools
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from msgspec.structs import astuple

from benchmarks.soak.counts import Counts
from benchmarks.soak.requests import SIMULATED
from benchmarks.soak.samples import Life
from imagegen_client import Client
from tools.fleet import Fleet

_SIMULATED = ("--backend", "simulated", "--simulated-batch-seconds", "0.05", "--simulated-image-seconds", "0.02")
_ENGINE = ("--device", "cpu", "--torch-threads", "1")
RESTARTS = (
    ("worker1", "terminate"), ("broker1", "terminate"), ("worker2", "kill"), ("gateway1", "terminate"),
    ("worker1", "kill"), ("worker2", "terminate"), ("broker1", "kill"), ("gateway1", "kill"),
)  # fmt: skip
"""In turns. broker0, worker0, the engine, gateway0 and the residents live from start to end, and see others go."""
WORKERS = ("worker0", "worker1", "worker2", "engine")
REMEMBERED = 21_000
"""A broker remembers the last 20,000 ids, to know late copies for what they are."""
BURST = 500
VISITOR_REQUESTS = 12
RUDE_EVERY = 4
"""Every so many visitors one is killed with its requests on their way."""
PATIENCE = 240.0
_PROXYLESS = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Stage:
    """Real processes, by their commands. Called from one thread, but for `lives`."""

    def __init__(self, fleet: Fleet, folder: Path, rate: float, seed: int, *, fill: bool) -> None:
        """`fill`: let the brokers remember as much as they ever will before the traffic begins."""
        self._fill = fill
        self._fleet = fleet
        self._folder = folder
        self._rate = rate
        self._random = random.Random(seed)
        self._numbers: dict[str, int] = {}
        self._living: dict[str, Life] = {}
        self._ports: dict[str, int] = {}
        self._visitors: dict[str, subprocess.Popen[str]] = {}
        self._reports: list[Path] = []
        self._turns = itertools.cycle(RESTARTS)
        self._visits = itertools.count()
        self.events: list[tuple[float, str, str]] = []
        """When which process was ended, and how; seconds from the start."""
        self.problems: list[str] = []

    def lives(self) -> list[Life]:
        """Return the processes that should be there now."""
        return list(self._living.values())

    def start(self) -> None:
        """Start everything but visitors, and wait until it can work."""
        for name in ("broker0", "broker1"):
            self._start(name)
        for name in WORKERS:
            self._start(name)
        with Client(self._frontends()[0]) as client:
            self._fleet.wait_for_workers(client, len(WORKERS))
        if self._fill:
            self._fill_memories()
        for name in ("gateway0", "gateway1", "resident0", "resident1"):
            self._start(name)

    def _fill_memories(self) -> None:
        """Have the brokers remember as many ended requests as they ever will, which else takes an hour."""
        # Cancelled ones: those that are refused outright are not remembered.
        for frontend in self._frontends():
            with Client(frontend) as client:
                for _ in range(0, REMEMBERED, BURST):
                    jobs = [client.submit("nobody", model=SIMULATED, width=8, height=8) for _ in range(BURST)]
                    for job in jobs:
                        job.cancel()
                    for job in jobs:
                        job.exception()

    def restart_one(self, seconds: float) -> None:
        """End the process whose turn it is, and start it again."""
        name, how = next(self._turns)
        self.events.append((round(seconds, 1), name, how))
        del self._living[name]
        if how == "kill":
            self._fleet.kill(name)
        elif (status := self._fleet.terminate(name)) != 0:
            self.problems.append(f"{name} ended with status {status} when it was told to")
        self._start(name)

    def visit(self) -> None:
        """Let a client come; kill one in so many, and take leave of those that have gone."""
        self._see_off(wait=0.0)
        number = next(self._visits)
        name, rude = f"visitor{number}", number % RUDE_EVERY == RUDE_EVERY - 1
        report = self._folder / f"{name}.json"
        words = [*self._client_words(number), "--requests", str(VISITOR_REQUESTS)]
        words += [
            "--seed",
            str(self._random.getrandbits(31)),
            "--report",
            str(report),
            *(["--rude"] if rude else []),
        ]
        command = [Path(sys.executable).name, "-m", "benchmarks.soak.visitor", *words]
        process = self._fleet.spawn(name, command, stdout=subprocess.PIPE)
        if rude:
            assert process.stdout is not None, "it was asked for"
            process.stdout.readline()
            self._fleet.kill(name)
            return
        self._living[name] = Life(name, "visitor", 0, process.pid)
        self._visitors[name] = process
        self._reports.append(report)

    def scrape(self) -> None:
        """Read what the daemons serve, as Prometheus would; one that restarts has nothing to say."""
        brokers = [place.http for place in self._fleet.brokers.values()]
        paths = [f"{url}/{page}" for url in brokers for page in ("stats", "metrics")]
        paths += [f"http://127.0.0.1:{port}/metrics" for port in self._ports.values()]
        for path in paths:
            with suppress(OSError), _PROXYLESS.open(path, timeout=5) as answer:
                answer.read()

    def check(self) -> None:
        """Note which process has ended by itself."""
        for name, process in list(self._fleet.processes.items()):
            if name not in self._visitors and process.poll() is not None:
                self.problems.append(f"{name} ended by itself with status {process.returncode}")
                self._living.pop(name, None)
                del self._fleet.processes[name]

    def finish(self) -> Counts:
        """Let all clients end; return what they counted. What is left at the brokers then is a problem."""
        counts = Counts()
        self._see_off(wait=PATIENCE)
        for name in ("resident0", "resident1"):
            self._living.pop(name, None)
            if name in self._fleet.processes and (status := self._fleet.terminate(name, PATIENCE)) != 0:
                self.problems.append(f"{name} ended with status {status}")
            self._reports.append(self._folder / f"{name}.json")
        for path in self._reports:
            try:
                counts.add(path)
            except OSError:
                self.problems.append(f"{path.stem} has left no report")
        for place in self._fleet.brokers.values():
            self._check_empty(place.frontend)
        return counts

    def _check_empty(self, frontend: str) -> None:
        """Wait until the broker has nothing left of anybody."""
        end = time.monotonic() + 30.0
        with Client(frontend) as client:
            while True:
                held = client.stats().requests
                if not any(astuple(held)):
                    return
                if time.monotonic() > end:
                    self.problems.append(f"{frontend} still holds {held} when all clients have gone")
                    return
                time.sleep(0.2)

    def _see_off(self, wait: float) -> None:
        end = time.monotonic() + wait
        for name, process in list(self._visitors.items()):
            try:
                status = process.wait(max(0.0, end - time.monotonic())) if wait else process.poll()
            except subprocess.TimeoutExpired:
                status = None
                self.problems.append(f"{name} has not ended")
            if status is None:
                continue
            if status != 0:
                self.problems.append(f"{name} ended with status {status}")
            if process.stdout is not None:
                process.stdout.close()
            del self._visitors[name], self._living[name], self._fleet.processes[name]

    def _start(self, name: str) -> None:
        role = name.rstrip("0123456789")
        match role:
            case "broker":
                self._fleet.start_broker("--default-model", SIMULATED, name=name)
            case "worker" | "engine":
                port = self._ports.setdefault(name, _free_port())
                options = _ENGINE if role == "engine" else _SIMULATED
                self._fleet.start_worker(
                    name, "--gpu", name[-1] if role == "worker" else "9", "--http-port", str(port), *options
                )
            case "gateway":
                self._start_gateway(name)
            case "resident":
                self._start_resident(name)
        number = self._numbers[name] = self._numbers.get(name, -1) + 1
        self._living[name] = Life(name, role, number, self._fleet.processes[name].pid)

    def _start_gateway(self, name: str) -> None:
        port = self._ports.setdefault(name, _free_port())
        words = [
            "--http",
            f"127.0.0.1:{port}",
            "--state-folder",
            str(self._folder / name),
            "--results-kept",
            "120",
        ]
        dial = [word for frontend in self._frontends() for word in ("--broker", frontend)]
        process = self._fleet.spawn(name, ["imagegen-gateway", *words, *dial], stdout=subprocess.PIPE)
        assert process.stdout is not None, "it was asked for"
        if not process.stdout.readline():
            self.problems.append(f"{name} did not start")

    def _start_resident(self, name: str) -> None:
        number = int(name[-1])
        words = [
            *self._client_words(number),
            "--rate",
            str(self._rate / 2),
            "--seed",
            str(self._random.getrandbits(31)),
        ]
        for gateway in ("gateway0", "gateway1"):
            words += ["--gateway", f"http://127.0.0.1:{self._ports[gateway]}"]
        report = str(self._folder / f"{name}.json")
        command = [Path(sys.executable).name, "-m", "benchmarks.soak.resident", *words, "--report", report]
        # One arena of malloc's: else each of the threads that ask the gateways fills its own, for most of an hour.
        self._fleet.spawn(name, command, environment={"MALLOC_ARENA_MAX": "1"})

    def _client_words(self, number: int) -> list[str]:
        """Return the options of a client that prefers another broker than the one before it."""
        frontends = self._frontends()
        first = number % len(frontends)
        return [word for frontend in frontends[first:] + frontends[:first] for word in ("--broker", frontend)]

    def _frontends(self) -> list[str]:
        return [place.frontend for place in self._fleet.brokers.values()]


def schedule(seconds: float, every: float, quiet: float) -> Iterator[float]:
    """Yield times from `every` on, `every` apart, that leave at least `quiet` seconds before the end."""
    at = every
    while at <= seconds - quiet:
        yield at
        at += every


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

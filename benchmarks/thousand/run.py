"""Lives a day through: the real cores of broker, workers and clients on simulated time."""

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import asdict

from benchmarks.simulated.clock import Clock
from benchmarks.simulated.device import Cost
from benchmarks.simulated.fleet import BrokerPeer, ClientPeer, WorkerPeer
from benchmarks.thousand.day import Day
from imagegen_protocol import GenerationRequest

WARM_UP = 240.0
RESTART_SECONDS = 60.0
HOST_OUTAGE_SECONDS = 1800.0
SAMPLE_SECONDS = 300.0


@dataclass(slots=True)
class Found:
    """What a day was like. Seconds of simulated time, but for those of the computer, which are CPU time."""

    day: Day
    asked: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    by_client: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    """When each request was asked for, and its latency."""
    samples: list[tuple[float, float, int, int]] = field(default_factory=list)
    """Time, GPUs that are busy, requests that wait at the broker, workers."""
    busy_seconds: float = 0.0
    totals: dict[str, Any] = field(default_factory=dict)
    events: int = 0
    broker_seconds: float = 0.0
    seconds: float = 0.0
    elapsed: float = 0.0
    """Simulated, from the first request to the last answer."""


class Fleet:
    """The hosts and what happens to them."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self.clock = Clock()
        self.dice = random.Random(day.seed + 1)
        self.broker = BrokerPeer(
            self.clock,
            strategy=day.strategy,
            interval=day.heartbeat_seconds,
            max_requests=1_000_000,
            max_requests_per_client=1_000_000,
            max_unacknowledged_per_client=1_000_000,
        )
        self.found = Found(day)
        self._runs: Counter[int] = Counter()
        self._busy_before = 0.0
        self._down: set[int] = set()
        """Hosts."""
        self.workers: list[WorkerPeer | None] = [None] * day.workers
        for index in range(day.workers):
            self.clock.at(self.dice.uniform(0.0, day.heartbeat_seconds), self._start, index)
        self.clients = [self._client(number) for number in range(day.clients)]
        self._due: dict[bytes, tuple[int, float]] = {}

    def run(self) -> Found:
        """Live the day."""
        day, clock, found = self.day, self.clock, self.found
        arrivals = day.arrivals()
        begun = time.thread_time()
        for at, client in arrivals:
            clock.at(WARM_UP + at, self._ask, client)
        self._plan_trouble()
        clock.at(WARM_UP, self._sample)
        clock.run(over=lambda: len(found.latencies) + found.failed.total() == len(arrivals))
        found.seconds = time.thread_time() - begun
        found.elapsed = clock.now - WARM_UP
        found.events = clock.events
        found.broker_seconds = self.broker.seconds
        found.totals = asdict(self.broker.core.statistics(clock.now).totals)
        found.busy_seconds = sum(w.device.busy_seconds for w in self.workers if w is not None) + self._busy_before
        return found

    # ---- requests ---------------------------------------------------------------------------------------

    def _client(self, number: int) -> ClientPeer:
        client = ClientPeer(self.broker, f"client-{number}", self._done, random.Random(self.dice.random()))
        self.clock.at(self.dice.uniform(0.0, self.day.heartbeat_seconds), client.open)
        return client

    def _ask(self, client: int) -> None:
        number = self.found.asked = self.found.asked + 1
        key = self.clients[client].ask(GenerationRequest(prompt="an image", seed=number))
        self._due[key] = client, self.clock.now

    def _done(self, key: bytes, error: Exception | None) -> None:
        client, asked = self._due.pop(key)
        if error is not None:
            self.found.failed[type(error).__name__] += 1
            return
        latency = self.clock.now - asked
        self.found.latencies.append(latency)
        self.found.by_client.setdefault(client, []).append((asked - WARM_UP, latency))

    # ---- workers ----------------------------------------------------------------------------------------

    def _start(self, index: int) -> None:
        day, old = self.day, self.workers[index]
        host = index // day.gpus
        if host in self._down or (old is not None and old.alive):
            return
        if old is not None:
            self._busy_before += old.device.busy_seconds
        self._runs[index] += 1
        cost = Cost(day.batch_seconds, day.image_seconds, day.speeds[host % len(day.speeds)])
        self.workers[index] = WorkerPeer(
            self.broker,
            f"host{host}-gpu{index % day.gpus}",
            cost,
            host=f"host{host}",
            run=self._runs[index],
            max_wait=1.0,
            left=lambda: self.clock.after(RESTART_SECONDS, self._start, index),
        )

    def _kill(self, index: int, pause: float) -> None:
        worker = self.workers[index]
        if worker is not None and worker.alive:
            worker.die()
            self.clock.after(pause, self._start, index)

    def _lose_host(self, host: int) -> None:
        self._down.add(host)
        self.clock.after(HOST_OUTAGE_SECONDS, self._down.discard, host)
        for index in range(host * self.day.gpus, (host + 1) * self.day.gpus):
            self._kill(index, HOST_OUTAGE_SECONDS + 1.0)

    def _drain(self, host: int) -> None:
        for worker in self.workers[host * self.day.gpus : (host + 1) * self.day.gpus]:
            if worker is not None:
                worker.drain()

    def _plan_trouble(self) -> None:
        day, dice = self.day, self.dice
        for _ in range(day.worker_deaths):
            at = WARM_UP + dice.uniform(0.0, day.seconds)
            self.clock.at(at, self._kill, dice.randrange(day.workers), RESTART_SECONDS)
        for _ in range(day.host_deaths):
            self.clock.at(WARM_UP + dice.uniform(0.0, day.seconds), self._lose_host, dice.randrange(day.hosts))
        # One host after the other, in a sixth of the day.
        for host in range(day.hosts):
            at = WARM_UP + day.seconds * (day.rollout_at + host / day.hosts / 6)
            self.clock.at(at, self._drain, host)

    def _sample(self) -> None:
        core = self.broker.core
        busy = sum(worker is not None and worker.alive and worker.device.busy for worker in self.workers)
        self.found.samples.append(
            (self.clock.now - WARM_UP, busy, len(core.scheduler.queue), len(core.workers.by_id))
        )
        self.clock.after(min(SAMPLE_SECONDS, self.day.seconds / 50), self._sample)

"""The ways to ask, each run in a process of its own: what it took, and what it held."""

import asyncio
import gc
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import psutil

from benchmarks.client.bare import Bare
from benchmarks.latency import Latencies
from imagegen_client import AsyncClient, Client

WARM_UP = 200
MARKS = 20
"""Looks at the memory on the way."""
_forks = multiprocessing.get_context("forkserver")


@dataclass(slots=True)
class Run:
    """One process's run; seconds of wall and of CPU (all its threads), memory in bytes."""

    requests: int
    seconds: float
    cpu: float
    latencies: bytes = b""
    """Encoded; one at a time only: of many on their way each one's would be the window's."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Requests answered, and USS then."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds

    @property
    def cpu_each(self) -> float:
        """CPU seconds a request."""
        return self.cpu / self.requests


class _Meter:
    """Measures from the end of the warm-up on."""

    def __init__(self, count: int, look: bool) -> None:
        self._process = psutil.Process()
        self._every = max(1, count // MARKS) if look else 0
        self._memory: list[tuple[int, int]] = []
        self.latencies = Latencies()
        gc.collect()
        self._look(0)
        self._cpu, self._begun = time.process_time(), time.perf_counter()

    def answered(self, number: int) -> None:
        """Take notice of the answer number so many, from 0."""
        if self._every and (number + 1) % self._every == 0:
            self._look(number + 1)

    def _look(self, answered: int) -> None:
        if self._every:
            self._memory.append((answered, self._process.memory_full_info().uss))

    def end(self, count: int) -> Run:
        """Return the run."""
        seconds, cpu = time.perf_counter() - self._begun, time.process_time() - self._cpu
        encoded = self.latencies.encode() if len(self.latencies) else b""
        return Run(count, seconds, cpu, encoded, self._memory)


def _prompts(count: int) -> list[dict[str, Any]]:
    return [{"prompt": f"picture {number}", "seed": number} for number in range(count)]


def bare(broker: str, count: int, window: int, look: bool) -> Run:
    """Ask over a bare socket."""
    socket = Bare(broker)
    socket.run(WARM_UP, window)
    meter = _Meter(count, look)
    if window == 1:
        for number in range(count):
            begun = time.perf_counter()
            socket.run(1, 1)
            meter.latencies.record(time.perf_counter() - begun)
            meter.answered(number)
    else:
        socket.run(count, window, meter.answered)
    run = meter.end(count)
    socket.close()
    return run


def blocking(broker: str, count: int, window: int, look: bool) -> Run:
    """Ask by `Client.generate` one at a time, else by `Client.map`."""
    with Client(broker) as client:
        for _ in client.map(_prompts(WARM_UP), window=window):
            pass
        meter = _Meter(count, look)
        if window == 1:
            for number in range(count):
                begun = time.perf_counter()
                client.generate(f"picture {number}", seed=number)
                meter.latencies.record(time.perf_counter() - begun)
                meter.answered(number)
        else:
            for number, _ in enumerate(client.map(_prompts(count), window=window)):
                meter.answered(number)
        return meter.end(count)


def asynchronous(broker: str, count: int, window: int, look: bool) -> Run:
    """Ask by `AsyncClient.generate` one at a time, else by `AsyncClient.map`."""

    async def ask() -> Run:
        async with AsyncClient(broker) as client:
            async for _ in client.map(_prompts(WARM_UP), window=window):
                pass
            meter = _Meter(count, look)
            if window == 1:
                for number in range(count):
                    begun = time.perf_counter()
                    await client.generate(f"picture {number}", seed=number)
                    meter.latencies.record(time.perf_counter() - begun)
                    meter.answered(number)
            else:
                number = 0
                async for _ in client.map(_prompts(count), window=window):
                    meter.answered(number)
                    number += 1
            return meter.end(count)

    return asyncio.run(ask())


WAYS: dict[str, Callable[[str, int, int, bool], Run]] = {
    "bare socket": bare,
    "Client": blocking,
    "AsyncClient": asynchronous,
}


def _child(pipe: Connection, way: str, broker: str, count: int, window: int, look: bool) -> None:
    pipe.send(WAYS[way](broker, count, window, look))


def in_child(way: str, broker: str, count: int, window: int, *, look: bool = False) -> Run:
    """Run a way in a process of its own. Raises `EOFError` if that died."""
    _forks.set_forkserver_preload([__name__])
    ours, theirs = _forks.Pipe()
    process = _forks.Process(target=_child, args=(theirs, way, broker, count, window, look))
    process.start()
    theirs.close()
    try:
        run: Run = ours.recv()
        return run
    finally:
        ours.close()
        process.join()


def _asker(way: str, broker: str) -> tuple[Callable[[], object], Callable[[], None]]:
    """Return what asks for one image, and what ends it."""
    if way == "bare socket":
        socket = Bare(broker)
        return lambda: socket.run(1, 1), socket.close
    client = Client(broker)
    return lambda: client.generate("picture", seed=1), client.close


def _one_of_many(pipe: Connection, way: str, broker: str, seconds: float) -> None:
    """Say that one is there, wait for the word, then ask one at a time until the time is over."""
    latencies = Latencies()
    ask, close = _asker(way, broker)
    ask()
    pipe.send(None)
    end = time.monotonic() + seconds if pipe.recv() else 0.0
    begun = time.perf_counter()
    while time.monotonic() < end:
        before = time.perf_counter()
        ask()
        latencies.record(time.perf_counter() - before)
    taken = time.perf_counter() - begun
    close()
    pipe.send(Run(len(latencies), taken, time.process_time(), latencies.encode()))


def many(way: str, broker: str, processes: int, seconds: float) -> list[Run]:
    """Run so many processes at once, each with one request at a time, and return the run of each."""
    _forks.set_forkserver_preload([__name__])
    pipes, started = [], []
    for _ in range(processes):
        ours, theirs = _forks.Pipe()
        process = _forks.Process(target=_one_of_many, args=(theirs, way, broker, seconds))
        process.start()
        theirs.close()
        pipes.append(ours)
        started.append(process)
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send(True)
    runs: list[Run] = [pipe.recv() for pipe in pipes]
    for pipe, process in zip(pipes, started, strict=True):
        pipe.close()
        process.join()
    return runs

"""The load, for peers with an asynchronous client: what is sent when, and what is told of it."""

import asyncio
import json
import math
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from benchmarks.peers.setups.device import RESULT_BYTES, Work, victim

Call = Callable[[int], Awaitable[bytes]]
"""Ask for the result of the request of a number; raises what goes wrong."""
WARM_UP_SECONDS = 1.0
KILL_AFTER = 50
"""Answers; a moment later, amid a batch, a worker is killed."""
UNEQUAL = (1, 2, 3, 4)
"""Images of the requests of an unequal burst, in turns."""
OUTSTANDING = (1, 64)
START_SECONDS = 60.0


def rates(latencies: Sequence[float], seconds: float, errors: int = 0) -> dict[str, float]:
    """Return the figures of a closed loop: requests a second, and latencies in seconds."""
    ordered = sorted(latencies)

    def quantile(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return {
        "requests": len(ordered),
        "rate": len(ordered) / seconds,
        "p50": quantile(0.5),
        "p99": quantile(0.99),
        "errors": errors,
    }


def split(images: int) -> list[int]:
    """Return how many images each request of an unequal burst asks for, so many in all."""
    sizes: list[int] = []
    while (left := images - sum(sizes)) > 0:
        sizes.append(min(left, UNEQUAL[len(sizes) % len(UNEQUAL)]))
    return sizes


def free_port() -> int:
    """Return a port that nobody has, just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Numbers:
    """Numbers for requests, each once."""

    def __init__(self) -> None:
        self._last = 0

    def __call__(self) -> int:
        self._last += 1
        return self._last


async def closed_loop(call: Call, number: Numbers, outstanding: int, seconds: float) -> dict[str, float]:
    """Keep so many requests on their way for so long."""
    latencies: list[float] = []
    errors = 0
    end = time.perf_counter() + seconds

    async def ask() -> None:
        nonlocal errors
        while (begun := time.perf_counter()) < end:
            try:
                await checked(call, number())
            except Exception:  # noqa: BLE001 - whatever it is, it is an answer that nobody wants
                errors += 1
            else:
                latencies.append(time.perf_counter() - begun)

    begun = time.perf_counter()
    await asyncio.gather(*(ask() for _ in range(outstanding)))
    return rates(latencies, time.perf_counter() - begun, errors)


async def checked(call: Call, number: int) -> bytes:
    """Ask, and look whether the answer can be one."""
    result = await call(number)
    if len(result) != RESULT_BYTES:
        raise ValueError(f"{len(result)} bytes came in place of {RESULT_BYTES}")
    return result


async def burst(call: Call, number: Numbers, sizes: Sequence[int]) -> float:
    """Ask for all at once; return the seconds until the last answer. n images are n requests of one."""
    begun = time.perf_counter()
    await asyncio.gather(*(checked(call, number()) for size in sizes for _ in range(size)))
    return time.perf_counter() - begun


async def with_death(call: Call, number: Numbers, work: Work) -> dict[str, Any]:
    """Ask for all at once and kill a worker amid them; tell what became of them."""
    outcomes: Counter[str] = Counter()
    enough = asyncio.Event()

    async def ask() -> None:
        try:
            await asyncio.wait_for(checked(call, number()), work.patience)
        except TimeoutError:
            outcomes["silence"] += 1
        except Exception as error:  # noqa: BLE001 - whatever it is, it is counted
            outcomes[f"{type(error).__name__}: {str(error)[:80]}"] += 1
        else:
            outcomes["answer"] += 1
            if outcomes["answer"] == KILL_AFTER:
                enough.set()

    begun = time.perf_counter()
    tasks = [asyncio.create_task(ask()) for _ in range(work.requests)]
    await enough.wait()
    await asyncio.sleep(work.moment)
    os.kill(victim(work), signal.SIGKILL)
    await asyncio.gather(*tasks)
    return deaths(outcomes, time.perf_counter() - begun)


def deaths(outcomes: Counter[str], seconds: float) -> dict[str, Any]:
    """Return what is told of requests amid which a worker died."""
    errors = {what: count for what, count in outcomes.items() if what not in ("answer", "silence")}
    told = {"answered": outcomes["answer"], "silent": outcomes["silence"], "errors": sum(errors.values())}
    return {**told, "seconds": seconds, "kinds_of_errors": errors}


async def drive(work: Work, call: Call) -> dict[str, Any]:
    """Do what the scenario says with a peer that is up."""
    number = Numbers()
    await checked(call, number())
    if work.scenario == "noop":
        told = {}
        for outstanding in OUTSTANDING:
            await closed_loop(call, number, outstanding, WARM_UP_SECONDS)
            told[str(outstanding)] = await closed_loop(call, number, outstanding, work.seconds)
        return told
    # Whatever a first request sets up, on all workers.
    await asyncio.gather(*(checked(call, number()) for _ in range(len(work.speeds) * work.max_batch_size)))
    if work.scenario == "kill":
        return await with_death(call, number, work)
    if work.scenario == "burst":
        return {"seconds": [await burst(call, number, [1] * work.requests) for _ in range(work.rounds)]}
    return {
        "alike": [await burst(call, number, [1] * work.requests) for _ in range(work.rounds)],
        "unequal": [await burst(call, number, split(work.requests)) for _ in range(work.rounds)],
    }


def tell(result: dict[str, Any]) -> None:
    """Hand the result to the runner."""
    print(json.dumps(result), flush=True)

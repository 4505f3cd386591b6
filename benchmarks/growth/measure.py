"""Times the steps of a rig, and says how they grow."""

import gc
import time
from collections.abc import Callable, Sequence
from math import log
from statistics import median

import psutil

from benchmarks.growth.rig import Rig

STEPS: dict[str, tuple[Callable[[Rig], None], float]] = {
    "request": (Rig.request, 1.0),
    "worker's heartbeat": (Rig.worker_heartbeat, 1.0),
    "client's heartbeat": (Rig.client_heartbeat, 1.0),
    "cancel": (Rig.cancel_one, 1.0),
    "worker joins and dies": (Rig.come_and_go, 0.2),
}
"""What is measured, and how many times for each request."""


def cost_of(rig: Rig, step: Callable[[Rig], None], times: int, rounds: int = 5) -> float:
    """Return the CPU seconds of a step: the median of rounds of so many."""
    seconds = []
    gc.disable()  # a walk over 100,000 requests would be charged to whoever makes the last object
    try:
        for _ in range(rounds):
            begun = time.thread_time()
            for _ in range(times):
                step(rig)
            seconds.append((time.thread_time() - begun) / times)
    finally:
        gc.enable()
    return median(seconds)


def exponent(sizes: Sequence[int], costs: Sequence[float]) -> float:
    """Return e of the least-squares fit cost ~ size^e: 0 is flat, 1 linear."""
    xs, ys = [log(size) for size in sizes], [log(cost) for cost in costs]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / sum((a - x) ** 2 for a in xs)


def resident_bytes() -> int:
    """Return the memory that this process has now."""
    rss: int = psutil.Process().memory_info().rss
    return rss


def bytes_a_queued_request(count: int) -> float:
    """Return the memory of a request that waits: of the core's tables, with an id and a body of 300 bytes."""
    rig = Rig(workers=1, queued=1, clients=100, strategy="round-robin")
    gc.collect()
    before = resident_bytes()
    for number in range(count):
        rig.submit(rig.clients[number % 100])
        if number % 256 == 0:
            rig.settle()
    rig.settle()
    rig.owner.clear()
    gc.collect()
    return (resident_bytes() - before) / count

"""Runs traffic through the real cores on simulated time."""

import random
from collections.abc import Sequence

from benchmarks.scaling.traffic import Timed
from benchmarks.simulated.clock import Clock
from benchmarks.simulated.continuous import ForwardCost
from benchmarks.simulated.device import Cost
from benchmarks.simulated.fleet import BrokerPeer, ClientPeer, WorkerPeer

WARM_UP = 10.0
"""Seconds in which workers register and the grace of a new broker ends."""


def run(traffic: Sequence[Timed], costs: Sequence[Cost | ForwardCost], strategy: str) -> list[float]:
    """Return the latency of each request, in the order of `traffic`, in seconds. Raises if one fails."""
    clock = Clock()
    broker = BrokerPeer(
        clock,
        strategy=strategy,
        max_requests=1_000_000,
        max_requests_per_client=1_000_000,
        max_unacknowledged_per_client=1_000_000,
    )
    for number, cost in enumerate(costs):
        # Processes do not start all at once, and their heartbeats do not come all at once either.
        clock.at(number * 0.9 / len(costs), WorkerPeer, broker, f"worker-{number}", cost)
    due: dict[bytes, float] = {}
    latencies: dict[bytes, float] = {}

    def done(key: bytes, error: Exception | None) -> None:
        if error is not None:
            raise error
        latencies[key] = clock.now - due[key]

    client = ClientPeer(broker, "client", done, random.Random(1))
    client.open()

    def ask(each: Timed) -> None:
        due[client.ask(each.request)] = clock.now

    for each in traffic:
        clock.at(WARM_UP + each.at, ask, each)
    clock.run(over=lambda: len(latencies) == len(traffic))
    return [latencies[key] for key in due]

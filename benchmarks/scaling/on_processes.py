"""Runs traffic through a broker and workers that are real processes, with the simulated backend."""

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.scaling.traffic import Timed
from benchmarks.simulated.device import Cost
from imagegen_client import Client, Job
from tools.fleet import Fleet

SIDE = 64
"""Pixels: pictures are drawn and encoded by the CPU that all workers share, and none of the cost model's time."""


class Processes:
    """A fleet that can grow, and a client of it."""

    def __init__(self, fleet: Fleet, client: Client) -> None:
        self._fleet = fleet
        self._client = client
        self._count = 0

    def grow(self, costs: Sequence[Cost]) -> None:
        """Start workers until there is one for each of these costs; those that are there must have theirs."""
        for number in range(self._count, len(costs)):
            cost = costs[number]
            self._fleet.start_worker(
                f"gpu{number}",
                *("--backend", "simulated", "--device", "cpu", "--max-batch-size", "8", "--log-level", "error"),
                *("--simulated-batch-seconds", str(cost.batch_seconds)),
                *("--simulated-image-seconds", str(cost.image_seconds)),
                *("--simulated-fail", f"slow:{cost.slow}"),
            )
            if number % 4 == 3:  # imports of all at once would take each other's time
                self._fleet.wait_for_workers(self._client, number + 1, timeout=300.0)
        self._count = len(costs)
        self._fleet.wait_for_workers(self._client, self._count, timeout=300.0)

    def run(self, traffic: Sequence[Timed]) -> list[float]:
        """Return each request's latency, from when it should have been sent: whether or not answers keep up."""
        latencies: list[float] = []
        all_there = threading.Event()

        def done(job: Job, due: float) -> None:
            job.result()
            latencies.append(time.monotonic() - due)
            if len(latencies) == len(traffic):
                all_there.set()

        begun = time.monotonic()
        for each in traffic:
            due = begun + each.at
            if (left := due - time.monotonic()) > 0:
                time.sleep(left)
            request = each.request
            job = self._client.submit(
                request.prompt,
                seed=request.seed,
                width=SIDE,
                height=SIDE,
                num_inference_steps=request.num_inference_steps or 4,
            )
            job.add_done_callback(lambda job, due=due: done(job, due))  # type: ignore[misc]
        if not all_there.wait(3600.0):
            raise TimeoutError("not all answers came within an hour")
        return latencies


@contextmanager
def processes(strategy: str) -> Iterator[Processes]:
    """Start a broker, and end it and all workers after the context."""
    with Fleet() as fleet:
        fleet.start_broker("--strategy", strategy, "--log-level", "error")
        with Client(fleet.frontend) as client:
            yield Processes(fleet, client)


def cpu_seconds() -> float:
    """Return the CPU time that the children of this process that have ended took."""
    times = os.times()
    return times.children_user + times.children_system

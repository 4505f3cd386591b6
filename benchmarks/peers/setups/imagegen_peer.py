"""imagegen itself: its broker, its workers and its client as real processes, with their defaults.

Where workers have unlike speeds, the strategy that the guide has for them: `least-wait`.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.setups.device import Work
from benchmarks.peers.setups.load import (
    KILL_AFTER,
    OUTSTANDING,
    WARM_UP_SECONDS,
    Numbers,
    deaths,
    rates,
    split,
    tell,
)
from imagegen_client import Client, ImagegenError, Job, RequestOptions
from tools.fleet import Fleet

SIDE_PIXELS = 32
"""Its PNG has about 1 kB."""
ACCOUNTED = "benchmarks.peers.setups.imagegen_worker"


def start(fleet: Fleet, work: Work) -> None:
    """Start the broker and the workers."""
    fleet.start_broker(*(("--strategy", "least-wait") if len(set(work.speeds)) > 1 else ()))
    place = next(iter(fleet.brokers.values()))
    for number, speed in enumerate(work.speeds):
        costs = ["--simulated-batch-seconds", str(work.batch_seconds)]
        costs += ["--simulated-image-seconds", str(work.image_seconds), "--simulated-fail", f"slow:{1 / speed}"]
        batching = ["--max-batch-size", str(work.max_batch_size), "--max-batch-wait-time", str(work.batch_wait)]
        options = ["--backend", "simulated", *costs, *(batching if work.batches else ["--batching", "off"])]
        name = f"gpu{number}"
        if work.costs_nothing or work.scenario == "kill":
            command = ["python", "-m", ACCOUNTED, "--broker", place.backend, "--name", name, *options]
            fleet.spawn(name, command)
        else:
            fleet.start_worker(name, *options)


def closed_loop(
    client: Client, number: Numbers, outstanding: int, seconds: float, options: RequestOptions
) -> dict[str, float]:
    """Keep so many requests on their way for so long, as `map` does it."""
    latencies: list[float] = []
    begun = time.perf_counter()
    if outstanding == 1:
        while (asked := time.perf_counter()) < begun + seconds:
            client.generate(str(number()), **options)
            latencies.append(time.perf_counter() - asked)
        return rates(latencies, time.perf_counter() - begun)

    def prompts() -> Iterator[str]:
        while time.perf_counter() < begun + seconds:
            yield str(number())

    for result in client.map(prompts(), window=outstanding, **options):
        latencies.append(result.total_seconds)
    return rates(latencies, time.perf_counter() - begun)


def burst(client: Client, number: Numbers, sizes: Sequence[int], options: RequestOptions) -> float:
    """Ask for all at once; return the seconds until the last answer."""
    begun = time.perf_counter()
    asked: list[RequestOptions] = [{**options, "num_images": size} for size in sizes]
    jobs = [client.submit(str(number()), **each) for each in asked]
    for job in jobs:
        job.result()
    return time.perf_counter() - begun


def with_death(client: Client, number: Numbers, work: Work, pid: int, options: RequestOptions) -> dict[str, Any]:
    """Ask for all at once and kill a worker amid them; tell what became of them."""
    answered, enough = Counter[str](), threading.Event()

    def count(job: Job) -> None:
        answered["all"] += 1
        if answered["all"] == KILL_AFTER:
            enough.set()

    begun = time.perf_counter()
    jobs = [client.submit(str(number()), **options) for _ in range(work.requests)]
    for job in jobs:
        job.add_done_callback(count)
    enough.wait()
    time.sleep(work.moment)
    os.kill(pid, signal.SIGKILL)
    outcomes: Counter[str] = Counter()
    for job in jobs:
        try:
            job.result(max(0.0, begun + work.patience - time.perf_counter()))
        except TimeoutError:
            outcomes["silence"] += 1
        except ImagegenError as error:
            outcomes[f"{error.code}: {error.message[:80]}"] += 1
        else:
            outcomes["answer"] += 1
    return deaths(outcomes, time.perf_counter() - begun)


def drive(client: Client, work: Work, pid: int) -> dict[str, Any]:
    """Do what the scenario says, as `load.drive` does it for the others."""
    number, options = Numbers(), RequestOptions(width=SIDE_PIXELS, height=SIDE_PIXELS)
    if work.scenario == "noop":
        told = {}
        options["num_inference_steps"] = 1
        for outstanding in OUTSTANDING:
            closed_loop(client, number, outstanding, WARM_UP_SECONDS, options)
            told[str(outstanding)] = closed_loop(client, number, outstanding, work.seconds, options)
        return told
    burst(client, number, [1] * (len(work.speeds) * work.max_batch_size), options)
    if work.scenario == "kill":
        return with_death(client, number, work, pid, options)
    if work.scenario == "burst":
        seconds = [burst(client, number, [1] * work.requests, options) for _ in range(work.rounds)]
        return {"seconds": seconds}
    return {
        "alike": [burst(client, number, [1] * work.requests, options) for _ in range(work.rounds)],
        "unequal": [burst(client, number, split(work.requests), options) for _ in range(work.rounds)],
    }


def main() -> None:
    """Start the fleet, ask, stop."""
    work = Work.of_environment()
    with Fleet(Path(work.folder) / "logs") as fleet:
        start(fleet, work)
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, len(work.speeds))
            tell(drive(client, work, fleet.processes["gpu0"].pid))


if __name__ == "__main__":
    main()

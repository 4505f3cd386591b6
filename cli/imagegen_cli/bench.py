"""A burst of requests and what it tells: durations, throughput, and how it was batched."""

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, Protocol

from imagegen_client.requests import RequestOptions
from imagegen_client.sync import Client
from imagegen_protocol import ImagegenError
from imagegen_protocol.limits import MAX_SEED
from imagegen_protocol.statistics import GpuStatistics, Statistics

TOTALS_TIMEOUT_SECONDS = 10.0
"""How long to wait for heartbeats to bring the workers' totals to the broker."""
_ASK_AGAIN_SECONDS = 0.05


class Outcome(Protocol):
    """What the report reads of a result."""

    @property
    def worker(self) -> str: ...
    @property
    def total_seconds(self) -> float: ...
    @property
    def formats(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Growth:
    """What one worker's totals grew by."""

    batches: int
    batched_requests: int
    whole: bool
    """The worker ran through; what one that started in between did before is lost with it."""


@dataclass(frozen=True, slots=True)
class Report:
    """One burst; times in seconds."""

    duration: float
    results: Sequence[Outcome]
    errors: Sequence[ImagegenError]
    growth: Mapping[str, Growth]
    num_gpus: int
    """Workers that serve the model."""

    @property
    def missing(self) -> int:
        """Requests whose batch no heartbeat has told of yet."""
        made = Counter(result.worker for result in self.results)
        known = {worker: grown.batched_requests for worker, grown in self.growth.items() if grown.whole}
        return sum(max(0, number - known[worker]) for worker, number in made.items() if worker in known)

    @property
    def failures(self) -> dict[str, int]:
        """How many requests failed, by error code."""
        return dict(sorted(Counter(error.code for error in self.errors).items()))

    def as_json(self) -> dict[str, Any]:
        """Return the numbers under the names that the guide's load test has."""
        latencies = sorted(result.total_seconds for result in self.results)
        images = sum(len(result.formats) for result in self.results)
        batches = sum(grown.batches for grown in self.growth.values())
        batched = sum(grown.batched_requests for grown in self.growth.values())
        return {
            "total_duration_seconds": round(self.duration, 3),
            "requests": len(self.results) + len(self.errors),
            "successful": len(self.results),
            "failed": len(self.errors),
            "throughput_images_per_second": round(images / self.duration, 3) if self.duration > 0 else 0.0,
            "latency_seconds": {f"p{share}": percentile(latencies, share) for share in (50, 95, 99)},
            "num_gpus": self.num_gpus,
            "total_batches": batches,
            "avg_batch_size": round(batched / batches, 3) if batches else 0.0,
        }


def percentile(ordered: Sequence[float], share: int) -> float | None:
    """Return the smallest value that `share` percent do not exceed (nearest rank); None of nothing."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)], 3)


def growth(before: Statistics, after: Statistics) -> dict[str, Growth]:
    """Return by how much the totals of each worker of `after` grew, never less than nothing."""
    earlier = {gpu.worker: gpu for gpu in before.per_gpu_stats}
    return {gpu.worker: _grown(earlier.get(gpu.worker), gpu) for gpu in after.per_gpu_stats}


def serving_gpus(statistics: Statistics, model: str | None) -> int:
    """Return how many workers serve the model, or the broker's default for None."""
    wanted = statistics.default_model if model is None else model
    return sum(wanted in gpu.models for gpu in statistics.per_gpu_stats)


def _grown(before: GpuStatistics | None, after: GpuStatistics) -> Growth:
    if before is None:
        return Growth(after.total_batches, after.total_batched_requests, True)
    batches = after.total_batches - before.total_batches
    requests = after.total_batched_requests - before.total_batched_requests
    same_process = (before.host, before.pid) == (after.host, after.pid)
    # Process numbers come round again, and containers all have the same one: totals only grow.
    if same_process and batches >= 0 and requests >= 0:
        return Growth(batches, requests, True)
    return Growth(after.total_batches, after.total_batched_requests, False)


def run_burst(
    client: Client,
    prompt: str,
    number: int,
    options: RequestOptions,
    *,
    patience: float = 10.0,
    on_answer: Callable[[], object] = lambda: None,
) -> Report:
    """Send `number` requests at once, wait for all answers, then for the workers' totals.

    The seeds count on from that of the options, if there is one. `patience`: seconds to wait for statistics.
    Raises `BrokerUnreachableError` when none come, and `InvalidRequestError`.
    """
    before = client.stats(patience)
    start = time.monotonic()
    jobs = [client.submit(prompt, **_numbered(options, index)) for index in range(number)]
    errors = []
    for job in jobs:
        if (error := job.exception()) is not None:
            errors.append(error)
        on_answer()
    duration = time.monotonic() - start
    results = [job.result() for job in jobs if job.exception() is None]
    end = time.monotonic() + TOTALS_TIMEOUT_SECONDS
    while True:
        after = client.stats(patience)
        serving = serving_gpus(after, options.get("model"))
        report = Report(duration, results, errors, growth(before, after), serving)
        if not report.missing or time.monotonic() >= end:
            return report
        Event().wait(_ASK_AGAIN_SECONDS)


def _numbered(options: RequestOptions, index: int) -> RequestOptions:
    first = options.get("seed")
    own = options.copy()
    own["seed"] = None if first is None else (first + index) % (MAX_SEED + 1)
    return own

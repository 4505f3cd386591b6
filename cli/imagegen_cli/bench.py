"""Load test: a burst of requests, its latencies, throughput and batch sizes."""

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
"""Time limit for the workers' totals to reach the broker with their heartbeats."""
_POLL_SECONDS = 0.05


class Outcome(Protocol):
    """Fields of a result that the report uses."""

    @property
    def worker(self) -> str: ...
    @property
    def total_seconds(self) -> float: ...
    @property
    def formats(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class TotalsDelta:
    """Increase of one worker's totals during the test."""

    batches: int
    batched_requests: int
    complete: bool
    """False if the worker restarted during the test: the totals of its previous process are lost."""


@dataclass(frozen=True, slots=True)
class Report:
    """Results of one burst; times in seconds."""

    duration: float
    results: Sequence[Outcome]
    errors: Sequence[ImagegenError]
    deltas: Mapping[str, TotalsDelta]
    num_gpus: int
    """Number of workers that serve the model."""

    @property
    def missing(self) -> int:
        """Number of requests whose batch is not yet in the workers' totals."""
        generated = Counter(result.worker for result in self.results)
        known = {worker: delta.batched_requests for worker, delta in self.deltas.items() if delta.complete}
        return sum(max(0, number - known[worker]) for worker, number in generated.items() if worker in known)

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed requests by error code."""
        return dict(sorted(Counter(error.code for error in self.errors).items()))

    def as_json(self) -> dict[str, Any]:
        """Return the report with the field names of the JSON output."""
        latencies = sorted(result.total_seconds for result in self.results)
        images = sum(len(result.formats) for result in self.results)
        batches = sum(delta.batches for delta in self.deltas.values())
        batched = sum(delta.batched_requests for delta in self.deltas.values())
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
    """Return a percentile of sorted values by nearest rank; None if there are none."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)], 3)


def totals_deltas(before: Statistics, after: Statistics) -> dict[str, TotalsDelta]:
    """Return the increase of the totals of each worker in `after`."""
    earlier = {gpu.worker: gpu for gpu in before.per_gpu_stats}
    return {gpu.worker: _delta(earlier.get(gpu.worker), gpu) for gpu in after.per_gpu_stats}


def serving_gpus(statistics: Statistics, model: str | None) -> int:
    """Return the number of workers that serve the model; None means the broker's default."""
    name = statistics.default_model if model is None else model
    return sum(name in gpu.models for gpu in statistics.per_gpu_stats)


def _delta(before: GpuStatistics | None, after: GpuStatistics) -> TotalsDelta:
    if before is None:
        return TotalsDelta(after.total_batches, after.total_batched_requests, True)
    batches = after.total_batches - before.total_batches
    requests = after.total_batched_requests - before.total_batched_requests
    same_process = (before.host, before.pid) == (after.host, after.pid)
    # Process ids are reused, and equal in all containers; but totals of one process never decrease.
    if same_process and batches >= 0 and requests >= 0:
        return TotalsDelta(batches, requests, True)
    return TotalsDelta(after.total_batches, after.total_batched_requests, False)


def run_burst(
    client: Client,
    prompt: str,
    number: int,
    options: RequestOptions,
    *,
    stats_timeout: float = 10.0,
    on_answer: Callable[[], object] = lambda: None,
) -> Report:
    """Submit `number` requests at once, wait for all answers, then for the workers' totals.

    Seeds increase by one from that of the options, if given. `stats_timeout`: seconds to wait for statistics.
    Raises `InvalidRequestError`, and `BrokerUnreachableError` if the statistics do not arrive.
    """
    before = client.stats(stats_timeout)
    start = time.monotonic()
    jobs = [client.submit(prompt, **_with_seed(options, index)) for index in range(number)]
    errors = []
    for job in jobs:
        if (error := job.exception()) is not None:
            errors.append(error)
        on_answer()
    duration = time.monotonic() - start
    results = [job.result() for job in jobs if job.exception() is None]
    end = time.monotonic() + TOTALS_TIMEOUT_SECONDS
    while True:
        after = client.stats(stats_timeout)
        serving = serving_gpus(after, options.get("model"))
        report = Report(duration, results, errors, totals_deltas(before, after), serving)
        if not report.missing or time.monotonic() >= end:
            return report
        Event().wait(_POLL_SECONDS)


def _with_seed(options: RequestOptions, index: int) -> RequestOptions:
    first = options.get("seed")
    own = options.copy()
    own["seed"] = None if first is None else (first + index) % (MAX_SEED + 1)
    return own

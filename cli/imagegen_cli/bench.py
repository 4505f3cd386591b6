"""Load test: a burst of requests, its latencies, throughput and batch sizes."""

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from imagegen_client.requests import RequestOptions
from imagegen_client.sync import Client
from imagegen_protocol import ImagegenError
from imagegen_protocol.limits import MAX_SEED
from imagegen_protocol.statistics import Statistics


class Outcome(Protocol):
    """Fields of a result that the report uses."""

    @property
    def batch_size(self) -> int: ...
    @property
    def total_seconds(self) -> float: ...
    @property
    def formats(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Report:
    """Results of one burst; times in seconds."""

    duration: float
    results: Sequence[Outcome]
    errors: Sequence[ImagegenError]
    num_gpus: int
    """Number of workers that serve the model."""

    @property
    def batches(self) -> float:
        """Number of batches of the burst's own requests; a batch shared with others counts by its share."""
        return sum(1 / max(1, result.batch_size) for result in self.results)

    @property
    def failures(self) -> dict[str, int]:
        """Number of failed requests by error code."""
        return dict(sorted(Counter(error.code for error in self.errors).items()))

    def as_json(self) -> dict[str, Any]:
        """Return the report with the field names of the JSON output."""
        latencies = sorted(result.total_seconds for result in self.results)
        images = sum(len(result.formats) for result in self.results)
        return {
            "total_duration_seconds": round(self.duration, 3),
            "requests": len(self.results) + len(self.errors),
            "successful": len(self.results),
            "failed": len(self.errors),
            "throughput_images_per_second": round(images / self.duration, 3) if self.duration > 0 else 0.0,
            "latency_seconds": {f"p{share}": percentile(latencies, share) for share in (50, 95, 99)},
            "num_gpus": self.num_gpus,
            "total_batches": math.ceil(round(self.batches, 6)),
            "avg_batch_size": round(len(self.results) / self.batches, 3) if self.batches else 0.0,
        }


def percentile(ordered: Sequence[float], share: int) -> float | None:
    """Return a percentile of sorted values by nearest rank; None if there are none."""
    if not ordered:
        return None
    return round(ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)], 3)


def serving_gpus(statistics: Statistics, model: str | None) -> int:
    """Return the number of workers that serve the model; None means the broker's default."""
    name = statistics.default_model if model is None else model
    return sum(name in gpu.models for gpu in statistics.per_gpu_stats)


def run_burst(
    client: Client,
    prompt: str,
    number: int,
    options: RequestOptions,
    *,
    stats_timeout: float = 10.0,
    on_answer: Callable[[], object] = lambda: None,
) -> Report:
    """Submit `number` requests at once and wait for all answers.

    Seeds increase by one from that of the options, if given. `stats_timeout`: seconds to wait for statistics.
    Raises `InvalidRequestError`, and `BrokerUnreachableError` if the statistics do not arrive.
    """
    client.stats(stats_timeout)  # fails at once without a broker
    start = time.monotonic()
    jobs = [client.submit(prompt, **_with_seed(options, index)) for index in range(number)]
    errors = []
    for job in jobs:
        if (error := job.exception()) is not None:
            errors.append(error)
        on_answer()
    duration = time.monotonic() - start
    results = [job.result() for job in jobs if job.exception() is None]
    return Report(duration, results, errors, serving_gpus(client.stats(stats_timeout), options.get("model")))


def _with_seed(options: RequestOptions, index: int) -> RequestOptions:
    first = options.get("seed")
    own = options.copy()
    own["seed"] = None if first is None else (first + index) % (MAX_SEED + 1)
    return own

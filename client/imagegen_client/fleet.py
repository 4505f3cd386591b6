"""A look at the fleet: what its brokers said at a time, and what has changed between two looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from msgspec import to_builtins

from imagegen_protocol.statistics import GpuStatistics, Statistics


@dataclass(frozen=True, slots=True)
class Broker:
    """The last answer of a broker; `lost_for`: seconds since that answer, None while the broker answers."""

    endpoint: str
    statistics: Statistics | None
    """None until the broker has answered."""
    lost_for: float | None = None

    @property
    def rows(self) -> list[GpuStatistics]:
        """The workers of the broker."""
        return [] if self.statistics is None else self.statistics.per_gpu_stats

    @property
    def wait_seconds(self) -> float | None:
        """How long a new request will wait, roughly; None where nothing tells."""
        if self.statistics is None or not self.statistics.queued_requests:
            return 0.0
        rate = self.statistics.answers_per_second
        return self.statistics.queued_requests / rate if rate > 0 else None


@dataclass(frozen=True, slots=True)
class Look:
    """The brokers at a time, in seconds of any clock that only goes forward."""

    at: float
    brokers: tuple[Broker, ...]

    def workers(self) -> dict[str, GpuStatistics]:
        """Return each worker once, by name: workers tell all brokers the same."""
        return {name: row for name, (_, row) in self._believed().items()}

    def unheard(self) -> set[str]:
        """Return the names of the workers of which only lost brokers have told."""
        return {name for name, ((lost, _), _) in self._believed().items() if lost}

    def _believed(self) -> dict[str, tuple[tuple[bool, float], GpuStatistics]]:
        """Of the brokers that answer, believe the one that has heard from a worker last."""
        known: dict[str, tuple[tuple[bool, float], GpuStatistics]] = {}
        for broker in self.brokers:
            for row in broker.rows:
                age = (broker.lost_for is not None, row.last_heard_seconds)
                if row.worker not in known or age < known[row.worker][0]:
                    known[row.worker] = age, row
        return known


def images_per_second(before: Look | None, now: Look) -> dict[str, float]:
    """Return the images that each worker made a second between two looks; a new worker's count from nothing."""
    if before is None or now.at <= before.at:
        return {}
    earlier = before.workers()
    return {name: _grown(earlier.get(name), row) / (now.at - before.at) for name, row in now.workers().items()}


def _grown(before: GpuStatistics | None, now: GpuStatistics) -> int:
    same = before is not None and (before.host, before.pid) == (now.host, now.pid)
    start = before.total_images if before is not None and same else 0
    # Process numbers are reused: totals only grow.
    return now.total_images - start if now.total_images >= start else now.total_images


def as_json(before: Look | None, now: Look) -> dict[str, Any]:
    """Return both for a program: what the brokers say, and the GPUs with `images_per_second`."""
    rates = images_per_second(before, now)
    brokers = [
        {
            "endpoint": broker.endpoint,
            "lost_for_seconds": broker.lost_for,
            "estimated_wait_seconds": broker.wait_seconds,
            **_without_gpus(broker.statistics),
        }
        for broker in now.brokers
    ]
    gpus = [
        {**to_builtins(row), "images_per_second": _rounded(rates.get(name))}
        for name, row in in_order(now.workers())
    ]
    return {"images_per_second": round(sum(rates.values()), 3), "brokers": brokers, "gpus": gpus}


def _without_gpus(statistics: Statistics | None) -> dict[str, Any]:
    plain: dict[str, Any] = {} if statistics is None else to_builtins(statistics)
    plain.pop("per_gpu_stats", None)
    return plain


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)


def in_order(workers: Mapping[str, GpuStatistics]) -> list[tuple[str, GpuStatistics]]:
    """Return workers by host, GPU and name."""
    return sorted(workers.items(), key=lambda item: (item[1].host, item[1].gpu_id, item[0]))

"""Snapshots of the fleet: the brokers' answers at one time, and the changes between two times."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from msgspec import to_builtins

from imagegen_protocol.statistics import GpuStatistics, Statistics


@dataclass(frozen=True, slots=True)
class BrokerStatus:
    """The last answer of a broker. `lost_for`: seconds since that answer, None while the broker answers."""

    endpoint: str
    statistics: Statistics | None
    """None until the first answer."""
    lost_for: float | None = None

    @property
    def rows(self) -> list[GpuStatistics]:
        """Workers of the broker."""
        return [] if self.statistics is None else self.statistics.per_gpu_stats

    @property
    def wait_seconds(self) -> float | None:
        """Estimated wait of a new request; None if the broker has answered hardly any request lately."""
        if self.statistics is None or not self.statistics.queued_requests:
            return 0.0
        rate = self.statistics.answers_per_second
        wait = self.statistics.queued_requests / rate if rate > 0 else inf
        return None if wait == inf else wait


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """State of the brokers at `at`, in seconds of a monotonic clock."""

    at: float
    brokers: tuple[BrokerStatus, ...]

    def workers(self) -> dict[str, GpuStatistics]:
        """Return the latest statistics of each worker by name; workers report to all brokers."""
        return {name: row for name, (_, row) in self._latest().items()}

    def stale_workers(self) -> set[str]:
        """Return the names of the workers known only from brokers that do not answer."""
        return {name for name, ((lost, _), _) in self._latest().items() if lost}

    def _latest(self) -> dict[str, tuple[tuple[bool, float], GpuStatistics]]:
        """Prefer brokers that answer, then the broker that heard from the worker last."""
        latest: dict[str, tuple[tuple[bool, float], GpuStatistics]] = {}
        for broker in self.brokers:
            for row in broker.rows:
                age = (broker.lost_for is not None, row.last_heard_seconds)
                if row.worker not in latest or age < latest[row.worker][0]:
                    latest[row.worker] = age, row
        return latest


def images_per_second(before: FleetSnapshot | None, now: FleetSnapshot) -> dict[str, float]:
    """Return the throughput of each worker between two snapshots; a new worker's images count from zero."""
    if before is None or now.at <= before.at:
        return {}
    earlier = before.workers()
    return {
        name: _new_images(earlier.get(name), row) / (now.at - before.at) for name, row in now.workers().items()
    }


def _new_images(before: GpuStatistics | None, now: GpuStatistics) -> int:
    same = before is not None and (before.host, before.pid) == (now.host, now.pid)
    start = before.total_images if before is not None and same else 0
    # Process ids are reused, but totals of one process never decrease.
    return now.total_images - start if now.total_images >= start else now.total_images


def as_json(before: FleetSnapshot | None, now: FleetSnapshot) -> dict[str, Any]:
    """Return a snapshot as JSON: the brokers' statistics, and the GPUs with `images_per_second`."""
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
        for name, row in sorted_workers(now.workers())
    ]
    return {"images_per_second": round(sum(rates.values()), 3), "brokers": brokers, "gpus": gpus}


def _without_gpus(statistics: Statistics | None) -> dict[str, Any]:
    fields: dict[str, Any] = {} if statistics is None else to_builtins(statistics)
    fields.pop("per_gpu_stats", None)
    return fields


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)


def sorted_workers(workers: Mapping[str, GpuStatistics]) -> list[tuple[str, GpuStatistics]]:
    """Return workers sorted by host, GPU and name."""
    return sorted(workers.items(), key=lambda item: (item[1].host, item[1].gpu_id, item[0]))

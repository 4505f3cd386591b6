"""A look at the fleet: what its brokers said at a time, and what has changed between two looks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""One entry of `per_gpu_stats`."""


@dataclass(frozen=True, slots=True)
class Broker:
    """What a broker said last; `lost_for`: seconds since it was heard, None while it answers."""

    endpoint: str
    statistics: Mapping[str, Any]
    lost_for: float | None = None

    @property
    def rows(self) -> list[Row]:
        """Its workers."""
        rows: list[Row] = self.statistics.get("per_gpu_stats", [])
        return rows

    @property
    def wait_seconds(self) -> float | None:
        """How long a new request will wait, roughly; None where nothing tells."""
        queued = self.statistics.get("queued_requests", 0)
        rate = self.statistics.get("answers_per_second", 0.0)
        if not queued:
            return 0.0
        return queued / rate if rate > 0 else None


@dataclass(frozen=True, slots=True)
class Look:
    """The brokers at a time, in seconds of any clock that only goes forward."""

    at: float
    brokers: tuple[Broker, ...]

    def workers(self) -> dict[str, Row]:
        """Return each worker once, by name: workers tell all brokers the same."""
        return {name: row for name, (_, row) in self._believed().items()}

    def unheard(self) -> set[str]:
        """Return the names of the workers of which only lost brokers have told."""
        return {name for name, ((lost, _), _) in self._believed().items() if lost}

    def _believed(self) -> dict[str, tuple[tuple[bool, float], Row]]:
        """Of the brokers that answer, believe the one that has heard from a worker last."""
        known: dict[str, tuple[tuple[bool, float], Row]] = {}
        for broker in self.brokers:
            for row in broker.rows:
                age = (broker.lost_for is not None, float(row.get("last_heard_seconds", 0.0)))
                name = str(row.get("worker", "?"))
                if name not in known or age < known[name][0]:
                    known[name] = age, row
        return known


def images_per_second(before: Look | None, now: Look) -> dict[str, float]:
    """Return the images that each worker made a second between two looks; a new worker's count from nothing."""
    if before is None or now.at <= before.at:
        return {}
    earlier = before.workers()
    return {name: _grown(earlier.get(name), row) / (now.at - before.at) for name, row in now.workers().items()}


def _grown(before: Row | None, now: Row) -> int:
    images = int(now.get("total_images", 0))
    same = before is not None and (before.get("host"), before.get("pid")) == (now.get("host"), now.get("pid"))
    start = int(before.get("total_images", 0)) if before is not None and same else 0
    # Process numbers come round again: totals only grow.
    return images - start if images >= start else images


def as_json(before: Look | None, now: Look) -> dict[str, Any]:
    """Return both for a program: what the brokers say, and the GPUs with `images_per_second`."""
    rates = images_per_second(before, now)
    brokers = [
        {
            "endpoint": broker.endpoint,
            "lost_for_seconds": broker.lost_for,
            "estimated_wait_seconds": broker.wait_seconds,
            **{name: value for name, value in broker.statistics.items() if name != "per_gpu_stats"},
        }
        for broker in now.brokers
    ]
    gpus = [{**row, "images_per_second": _rounded(rates.get(name))} for name, row in in_order(now.workers())]
    return {"images_per_second": round(sum(rates.values()), 3), "brokers": brokers, "gpus": gpus}


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 3)


def in_order(workers: Mapping[str, Row]) -> list[tuple[str, Row]]:
    """Return workers by host, GPU and name."""
    return sorted(
        workers.items(), key=lambda item: (str(item[1].get("host", "")), _gpu(item[1].get("gpu_id")), item[0])
    )


def _gpu(number: Any) -> tuple[int, str]:
    return (number, "") if isinstance(number, int) else (0, str(number))

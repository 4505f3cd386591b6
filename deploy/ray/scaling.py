"""Scaling policy: the number of workers, and the workers to drain. Uses neither Ray nor a clock."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from imagegen_protocol.statistics import Statistics

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Settings of the scaling."""

    least: int
    """Minimum number of workers."""
    most: int
    """Maximum number of workers."""
    work_off: float
    """Target seconds for finishing the queue."""
    shrink_after: float
    """Seconds for which fewer workers must suffice before one is drained."""

    def workers_for(self, backlog_seconds: float) -> int:
        """Return the number of workers that finish a backlog, in seconds of one worker, in time."""
        return min(max(math.ceil(backlog_seconds / self.work_off), self.least), self.most)


class Scaler:
    """Scaler that grows at once and shrinks late: its target is the maximum demand within `shrink_after`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._demands: deque[tuple[float, int]] = deque()

    def target(self, backlog_seconds: float | None, now: float) -> int:
        """Return the target number of workers. With an unknown backlog (None) the last demand counts."""
        if backlog_seconds is None:
            demand = self._demands[-1][1] if self._demands else self._policy.least
        else:
            demand = self._policy.workers_for(backlog_seconds)
        while self._demands and self._demands[0][0] < now - self._policy.shrink_after:
            self._demands.popleft()
        while self._demands and self._demands[-1][1] <= demand:
            self._demands.pop()
        self._demands.append((now, demand))
        return self._demands[0][1]


def backlog_seconds(statistics: Statistics, model: str | None) -> float:
    """Return the backlog at a broker in seconds of one worker, of one model or of all."""
    return sum(row.backlog_seconds for row in statistics.per_model_stats if model in (None, row.model))


def queue_depths(statistics: Statistics) -> dict[str, int]:
    """Return the queue depth of each worker in images, by the worker's name."""
    return {gpu.worker: gpu.current_queue_depth for gpu in statistics.per_gpu_stats}


def select_to_drain(workers: Sequence[T], count: int, depth: Mapping[T, int | None]) -> list[T]:
    """Return `count` workers: first those that wait for a GPU (depth None), then those with the lowest depth."""

    def order(worker: T) -> tuple[bool, int]:
        images = depth[worker]
        return images is not None, images or 0

    return sorted(workers, key=order)[:count]

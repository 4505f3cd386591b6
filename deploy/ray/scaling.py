"""The number of workers, and which of them to remove: pure functions, without Ray and without a clock."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from imagegen_protocol.statistics import Statistics

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Parameters of the number of workers.

    `work_off` is the time in which a queue should be processed, `shrink_after` the time for which fewer workers
    must have been sufficient before one is removed; both in seconds.
    """

    least: int
    most: int
    work_off: float
    shrink_after: float

    def wanted(self, backlog_seconds: float) -> int:
        """Return the number of workers that process a backlog, in seconds of one worker, in time."""
        return min(max(math.ceil(backlog_seconds / self.work_off), self.least), self.most)


class Scaler:
    """Scales up at once and down late: the target is the maximum wanted within `shrink_after`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._wanted: deque[tuple[float, int]] = deque()

    def target(self, backlog_seconds: float | None, now: float) -> int:
        """Return the target number of workers; unchanged if the backlog is unknown."""
        if backlog_seconds is None:
            wanted = self._wanted[-1][1] if self._wanted else self._policy.least
        else:
            wanted = self._policy.wanted(backlog_seconds)
        while self._wanted and self._wanted[0][0] < now - self._policy.shrink_after:
            self._wanted.popleft()
        while self._wanted and self._wanted[-1][1] <= wanted:
            self._wanted.pop()
        self._wanted.append((now, wanted))
        return self._wanted[0][1]


def backlog_seconds(statistics: Statistics, model: str | None) -> float:
    """Return the backlog at a broker, of one model or of all."""
    return sum(row.backlog_seconds for row in statistics.per_model_stats if model in (None, row.model))


def queue_depths(statistics: Statistics) -> dict[str, int]:
    """Return the queue depth of each worker in images, by the worker's name."""
    return {gpu.worker: gpu.current_queue_depth for gpu in statistics.per_gpu_stats}


def first_to_go(workers: Sequence[T], count: int, depth: Mapping[T, int | None]) -> list[T]:
    """Return `count` workers to remove: workers that wait for a GPU (depth None) first, then the least loaded."""

    def order(worker: T) -> tuple[bool, int]:
        images = depth[worker]
        return images is not None, images or 0

    return sorted(workers, key=order)[:count]

"""How many workers there should be, and which of them go: plain numbers in and out, no Ray, no clock."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from imagegen_protocol.statistics import Statistics

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the number of workers follows.

    `work_off` are the seconds in which a queue should be worked off, `shrink_after` those for which fewer workers
    must have been enough before one goes.
    """

    least: int
    most: int
    work_off: float
    shrink_after: float

    def wanted(self, backlog_seconds: float) -> int:
        """Return how many workers work off a backlog in time; it is in seconds of one worker."""
        return min(max(math.ceil(backlog_seconds / self.work_off), self.least), self.most)


class Scaler:
    """Grows at once and shrinks late: the target is the most that was wanted within `shrink_after`."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._wanted: deque[tuple[float, int]] = deque()

    def target(self, backlog_seconds: float | None, now: float) -> int:
        """Return how many workers there should be; without news of the backlog, as many as before."""
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
    """Return `count` workers: those that wait for a GPU (depth None) first, then those with least to do."""

    def order(worker: T) -> tuple[bool, int]:
        images = depth[worker]
        return images is not None, images or 0

    return sorted(workers, key=order)[:count]

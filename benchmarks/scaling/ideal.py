"""The best that any scheduler could do, which knows the future and pays for no message."""

import heapq
from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from benchmarks.simulated.device import Cost

MAX_BATCH_SIZE = 8


def seconds_for(requests: int, cost: Cost, max_batch_size: int = MAX_BATCH_SIZE) -> float:
    """Return the time in which one worker makes so many alike requests of one image: in as few batches as go."""
    batches = ceil(requests / max_batch_size)
    return cost.slow * (batches * cost.batch_seconds + requests * cost.image_seconds)


def best_makespan(requests: int, costs: Sequence[Cost]) -> float:
    """Return the shortest time for a burst of alike requests: the best split of whole requests over the workers.

    Each next request goes to the worker that would then end first. As a worker's time grows with each request,
    that is the best split: the last one ends at the n-th smallest of all the workers' times.
    """
    ends = [(seconds_for(1, cost), index, 1) for index, cost in enumerate(costs)]
    heapq.heapify(ends)
    last = 0.0
    for _ in range(requests):
        last, index, count = ends[0]
        heapq.heapreplace(ends, (seconds_for(count + 1, costs[index]), index, count + 1))
    return last


class Asked(NamedTuple):
    """A request: when it comes, and how much work it is, in seconds of a worker of speed 1 with full batches."""

    at: float
    work: float
    least: float
    """Seconds that it takes at least: alone on the fastest worker."""


def least_mean(asked: Sequence[Asked], speed: float) -> float:
    """Return a lower bound of the mean latency.

    The fleet is taken for one machine of all workers' speed together, which always has full batches and may
    leave a request for a shorter one: with the least work left first no schedule has a lower mean. Nor can it be
    lower than that of requests which never wait.
    """
    left: list[tuple[float, float]] = []
    now, total = 0.0, 0.0
    for each in [*asked, Asked(float("inf"), 0.0, 0.0)]:
        while left and now < each.at:
            work, came = left[0]
            if now + work / speed > each.at:
                heapq.heapreplace(left, (work - (each.at - now) * speed, came))
                break
            now += work / speed
            heapq.heappop(left)
            total += now - came
        now = each.at
        heapq.heappush(left, (each.work, each.at))
    return max(total, sum(each.least for each in asked)) / len(asked)


def least_quantile(asked: Sequence[Asked], speed: float, quantile: float) -> float:
    """Return a lower bound of a quantile of the latency: the least within which so many can have their answer.

    On the one machine of `least_mean`, which here also knows which requests to sacrifice for the others.
    """
    wanted = ceil(quantile * len(asked))
    low, high = 0.0, 2 * (max(each.least for each in asked) + sum(each.work for each in asked) / speed)
    for _ in range(40):
        middle = (low + high) / 2
        if _within(asked, speed, middle) >= wanted:
            high = middle
        else:
            low = middle
    return low


def _within(asked: Sequence[Asked], speed: float, limit: float) -> int:
    """Return how many can be answered within `limit` of their arrival, or some more.

    In the order of arrival, which is that of the deadlines; whenever one would be late, the largest of those since
    the machine last rested is left out (Moore and Hodgson). Some more: leaving one out is taken to save all of
    its work, also where the machine would only have rested instead.
    """
    kept, backlog, now = 0, 0.0, 0.0
    since_rest: list[float] = []
    for each in asked:
        backlog -= (each.at - now) * speed
        now = each.at
        if backlog <= 0:
            backlog = 0.0
            since_rest.clear()
        if each.least > limit:
            continue
        kept += 1
        backlog += each.work
        heapq.heappush(since_rest, -each.work)
        while backlog / speed > limit and since_rest:
            backlog += heapq.heappop(since_rest)
            kept -= 1
    return kept

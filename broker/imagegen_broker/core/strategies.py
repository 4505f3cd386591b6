"""Which worker gets the next request: pure functions over the workers' loads.

`round-robin` and `queue-depth` are sort keys: of the workers with room, the one with the least key is next.
`least-wait` plans the whole backlog on paper first; `docs/decisions/0004-least-wait.md` says why.
"""

import heapq
from collections.abc import Callable, Sequence
from math import inf
from typing import NamedTuple

STRATEGIES = ("round-robin", "queue-depth", "least-wait")


class Load(NamedTuple):
    """A worker as dispatch sees it; `seconds` is the time of one image in a full batch."""

    depth: int
    last_used: int
    seconds: float
    before: float = 0.0
    """Seconds until it could begin with this model, beside those of what it has: of the loading."""


Key = tuple[float, int]


def round_robin(load: Load) -> Key:
    """Order by turn: the least recently used first."""
    return (0.0, load.last_used)


def queue_depth(load: Load) -> Key:
    """Order by queue depth; ties go to the least recently used."""
    return (load.depth, load.last_used)


def expected_finish(load: Load) -> Key:
    """Order by when one more request would be done; ties go to the least recently used."""
    return (load.before + (load.depth + 1) * load.seconds, load.last_used)


KEYS: dict[str, Callable[[Load], Key]] = {
    "round-robin": round_robin,
    "queue-depth": queue_depth,
    "least-wait": expected_finish,
}


def plan_least_wait(backlog: int, loads: Sequence[Load]) -> list[int]:
    """Return how many of `backlog` requests each worker should get, so that the last one ends soonest.

    Each request goes, on paper, to the worker that would finish it first, the full ones included. Water-filling
    finds the common level in closed form, so that the cost is O(workers · log workers), whatever the backlog.
    """
    if not loads or backlog <= 0:
        return [0] * len(loads)
    level = _level(backlog, loads)
    # Rounded down: what is left is less than one request a worker, and is handed out one by one.
    plan = [max(0, int((level - load.before) / load.seconds) - load.depth) for load in loads]
    surplus = backlog - sum(plan)
    heap = [
        (expected_finish(load._replace(depth=load.depth + count)), index)
        for index, (load, count) in enumerate(zip(loads, plan, strict=True))
    ]
    heapq.heapify(heap)
    for _ in range(surplus):
        _, index = heap[0]
        plan[index] += 1
        load = loads[index]
        heapq.heapreplace(heap, (expected_finish(load._replace(depth=load.depth + plan[index])), index))
    return plan


def horizon_of(backlog: int, loads: Sequence[Load]) -> float:
    """Return when the last of `backlog` requests ends in the plan of `least-wait`; infinite without workers."""
    if not loads:
        return inf
    return max(
        load.before + (load.depth + count) * load.seconds
        for load, count in zip(loads, plan_least_wait(backlog, loads), strict=True)
        if count
    )


def _level(backlog: int, loads: Sequence[Load]) -> float:
    """Return the time T with sum(max(0, (T - before) / seconds - depth)) = backlog, a little lowered.

    Lowered so that nothing is rounded up.
    """
    busy = sorted(
        (load.before + load.depth * load.seconds, load.depth + load.before / load.seconds, 1.0 / load.seconds)
        for load in loads
    )
    depth = 0.0
    rate = 0.0
    level = 0.0
    for index, (_, own_depth, own_rate) in enumerate(busy):
        depth += own_depth
        rate += own_rate
        level = (backlog + depth) / rate
        if index + 1 == len(busy) or level <= busy[index + 1][0]:
            break
    return level * (1 - 1e-12)

"""The strategy `least-wait`; `docs/decisions/0004-least-wait.md` explains it."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from imagegen_broker.core.records import Request, Worker
from imagegen_broker.scheduling.strategies.base import Strategy
from imagegen_broker.scheduling.worker_index import Key, WorkerIndex
from imagegen_broker.scheduling.worker_pool import WorkerPool
from imagegen_protocol.limits import MAX_SECONDS_PER_IMAGE, MIN_SECONDS_PER_IMAGE

LOAD_SECONDS = 10.0
"""Assumed duration of loading a model. Workers do not report it; the order of magnitude is enough."""
PLAN_SECONDS_PER_WORKER = 1e-3
PLAN_IMAGES_PER_WORKER = 1 / 8
PLAN_IMAGE_TIMES = 1 / 8
"""Limits on how long a plan is reused. Computing one is O(workers), so it serves several dispatches."""
_UNKNOWN_SECONDS = 1.0


class Load(NamedTuple):
    """The load of one worker, as a plan needs it."""

    depth: int
    """Number of images assigned to the worker."""
    seconds: float
    """Seconds per image in a full batch."""
    before: float = 0.0
    """Seconds until these images start, negative if they are running, plus the time to load the model."""

    def finish(self, more: int) -> float:
        """Return the seconds until the worker has generated `more` images in addition to its own."""
        return self.before + (self.depth + more) * self.seconds


@dataclass(slots=True)
class _Plan:
    """The computed time at which the backlog of one model is finished."""

    computed_at: float
    horizon: float
    """Time at which the last image of the backlog is finished."""
    backlog: int
    """Images of that backlog that have not been dispatched since."""
    images_per_second: float
    dispatched: int = 0

    def is_outdated(self, now: float, backlog: int, workers: int) -> bool:
        """Return whether too much time has passed, or too many images were dispatched, since the plan."""
        changes = self.dispatched + abs(backlog - self.backlog)
        seconds = max(PLAN_SECONDS_PER_WORKER * workers, PLAN_IMAGE_TIMES * workers / self.images_per_second)
        return now - self.computed_at > seconds or changes > PLAN_IMAGES_PER_WORKER * workers


class LeastWait(Strategy):
    """Chooses the worker that is expected to finish the request first, unless waiting for a full one is quicker.

    For a worker that must load the model first, the loading time is added.
    """

    name = "least-wait"

    def __init__(self, pool: WorkerPool) -> None:
        super().__init__(pool)
        self._idle = WorkerIndex()
        """Idle workers with room, by the seconds that they need for one more image."""
        self._running = WorkerIndex()
        """Busy workers with room, by the time at which they finish."""
        self._full: dict[str, dict[bytes, None]] = {}
        """Available workers without room, by model."""
        self._plans: dict[str, _Plan] = {}
        self._speeds: dict[bytes, float] = {}
        """Seconds per image of the workers that have reported them."""
        self._sum_of_speeds = 0.0

    def choose(self, request: Request, backlog: int, now: float) -> Worker | None:
        """Return the worker with room that finishes first, if it is not slower than waiting for a full one."""
        self.refresh_changed()
        model = request.model or ""
        first = self._first(model, now)
        if first is None:
            return None
        worker, finish = first
        # If no worker is full, the first worker with room is the first of all.
        if self._full.get(model) and finish > self._horizon(model, backlog, now):
            return None
        if backlog <= request.images:
            self._plans.pop(model, None)
        elif (plan := self._plans.get(model)) is not None:
            plan.backlog -= request.images
            plan.dispatched += request.images
        return worker

    def refresh(self, worker: Worker) -> None:
        """Update the indexes after a worker's load, speed or state has changed."""
        self._update_speed(worker)
        has_room = worker.room > 0
        for model in worker.ready.models:
            full = self._full.setdefault(model, {})
            if worker.is_available and not has_room:
                full[worker.id] = None
            else:
                full.pop(worker.id, None)
        self._idle.discard(worker)
        self._running.discard(worker)
        if not has_room:
            return
        started = worker.start_times()
        index = self._running if started else self._idle
        start = sum(started) / len(started) if started else 0.0
        index.place(worker, lambda model: self._key(worker, model, start))

    def worker_removed(self, worker: Worker) -> None:
        """Forget a worker that is no longer in the pool."""
        super().worker_removed(worker)
        self._sum_of_speeds -= self._speeds.pop(worker.id, 0.0)
        self._idle.discard(worker)
        self._running.discard(worker)
        for model in worker.ready.models:
            self._full.get(model, {}).pop(worker.id, None)
            if not self._pool.serves(model):
                self._idle.discard_model(model)
                self._running.discard_model(model)
                self._plans.pop(model, None)
                self._full.pop(model, None)

    def _first(self, model: str, now: float) -> tuple[Worker, float] | None:
        """Return the worker with room that finishes one more image first, and when."""
        idle = self._idle.first(model)
        finish = inf if idle is None else now + idle[0][0]
        while (entry := self._running.first(model)) is not None and entry[0][0] < finish:
            worker = entry[1]
            key = self._key(worker, model, self._start(worker, now))
            if key[0] > entry[0][0] + self._seconds(worker) / 2:
                # It takes longer than expected: move it back in the order.
                self._running.move_first(model, key, worker)
                continue
            return worker, key[0]
        return None if idle is None else (idle[1], finish)

    def _horizon(self, model: str, backlog: int, now: float) -> float:
        """Return when the whole backlog is finished if each request goes to the worker that finishes it first."""
        plan = self._plans.get(model)
        if plan is None or plan.is_outdated(now, backlog, self._pool.count(model)):
            plan = self._plans[model] = self._compute_plan(model, backlog, now)
        # A dispatch does not move the horizon: the work only moves to a worker. Arriving and leaving requests do.
        return plan.horizon + (backlog - plan.backlog) / plan.images_per_second

    def _compute_plan(self, model: str, backlog: int, now: float) -> _Plan:
        workers = self._pool.serving(model)
        loads = [self._load(worker, model, self._start(worker, now) - now) for worker in workers]
        images_per_second = sum(1 / load.seconds for load in loads)
        return _Plan(now, now + horizon_of(backlog, loads), backlog, images_per_second)

    def _key(self, worker: Worker, model: str, start: float) -> Key:
        return (self._load(worker, model, start).finish(1), worker.last_used)

    def _load(self, worker: Worker, model: str, start: float) -> Load:
        before = start if worker.is_warm(model) else start + LOAD_SECONDS
        return Load(worker.load, self._seconds(worker), before)

    def _start(self, worker: Worker, now: float) -> float:
        """Return the mean start time of a worker's running requests, or `now` if none runs.

        It is never longer ago than their images are expected to take.
        """
        times = worker.start_times()
        if not times:
            return now
        longest = worker.images_running() * self._seconds(worker)
        return max(sum(times) / len(times), now - longest)

    def _seconds(self, worker: Worker) -> float:
        """Return a worker's seconds per image, or the average of all workers if it has not reported any."""
        if worker.seconds_per_image:
            return worker.seconds_per_image
        if not self._speeds:
            return _UNKNOWN_SECONDS
        # Rounding errors accumulate in the sum, which may lose a fast worker's share next to a very slow one.
        average = self._sum_of_speeds / len(self._speeds)
        return min(max(average, MIN_SECONDS_PER_IMAGE), MAX_SECONDS_PER_IMAGE)

    def _update_speed(self, worker: Worker) -> None:
        old, new = self._speeds.get(worker.id), worker.seconds_per_image
        if old == new:
            return
        self._sum_of_speeds += (new or 0.0) - (old or 0.0)
        if new:
            self._speeds[worker.id] = new
        else:
            self._speeds.pop(worker.id, None)
            if not self._speeds:
                self._sum_of_speeds = 0.0


def distribute(backlog: int, loads: Sequence[Load]) -> list[int]:
    """Return how many of `backlog` images each worker should generate for the last one to be finished soonest.

    Each image is assigned to the worker that finishes it first; workers without room are included. Water-filling
    finds the common level in closed form, so the cost is O(workers · log workers), whatever the backlog.
    """
    if not loads or backlog <= 0:
        return [0] * len(loads)
    level = _level(backlog, loads)
    # Rounded down. Less than one image per worker remains; these are assigned one by one.
    counts = [max(0, int((level - load.before) / load.seconds) - load.depth) for load in loads]
    heap = [(load.finish(count + 1), index) for index, (load, count) in enumerate(zip(loads, counts, strict=True))]
    heapq.heapify(heap)
    for _ in range(backlog - sum(counts)):
        _, index = heap[0]
        counts[index] += 1
        heapq.heapreplace(heap, (loads[index].finish(counts[index] + 1), index))
    return counts


def horizon_of(backlog: int, loads: Sequence[Load]) -> float:
    """Return the seconds until the last of `backlog` images is finished; infinite without workers."""
    counts = distribute(backlog, loads)
    return max((load.finish(count) for load, count in zip(loads, counts, strict=True) if count), default=inf)


def _level(backlog: int, loads: Sequence[Load]) -> float:
    """Return the time T with sum(max(0, (T - before) / seconds - depth)) = backlog, lowered a little.

    Lowered so that rounding never assigns more than the backlog.
    """
    busy = sorted((load.finish(0), load.depth + load.before / load.seconds, 1.0 / load.seconds) for load in loads)
    depth = rate = level = 0.0
    for index, (_, own_depth, own_rate) in enumerate(busy):
        depth += own_depth
        rate += own_rate
        level = (backlog + depth) / rate
        if index + 1 == len(busy) or level <= busy[index + 1][0]:
            break
    return level * (1 - 1e-12)

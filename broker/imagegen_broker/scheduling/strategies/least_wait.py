"""The strategy `least-wait`; `docs/decisions/0004-least-wait.md` explains it."""

from collections.abc import Hashable, Iterator
from itertools import islice
from math import inf
from typing import NamedTuple

from imagegen_broker.core.records import Request, Worker
from imagegen_broker.scheduling.cost_estimates import REFERENCE, CostEstimates, groups_of
from imagegen_broker.scheduling.finish_times import DeviceCost
from imagegen_broker.scheduling.forecast import Forecast, Prediction, with_loading
from imagegen_broker.scheduling.strategies.base import Strategy
from imagegen_broker.scheduling.worker_index import WorkerIndex
from imagegen_broker.scheduling.worker_pool import WorkerPool

IDLE_CANDIDATES = 2
BUSY_CANDIDATES = 3
GROUP_CANDIDATES = 2
FULL_CANDIDATES = 1
"""Numbers of workers that are compared for one request: idle ones, busy ones with room, those with requests that
share forwards with it, and full ones."""
_NOTABLE_BACKLOG = 1.1
"""Growth of the backlog after which a decision to wait is taken again."""
_MAX_REORDERED = 16
"""Overdue workers that are moved back in the order at one choice."""


class _Wait(NamedTuple):
    """The decision that a request waits for a full worker."""

    request_id: bytes
    until: float
    """Time at which to decide again."""
    backlog_seconds: float


class LeastWait(Strategy):
    """Chooses the worker whose requests, with the new one, finish with the least added delay.

    If that is a worker without room, the request waits for it.
    """

    name = "least-wait"

    def __init__(self, pool: WorkerPool, estimates: CostEstimates) -> None:
        super().__init__(pool, estimates)
        self._idle = WorkerIndex()
        """Idle workers with room, by the seconds that a reference request takes."""
        self._busy = WorkerIndex()
        """Busy workers with room, by the time at which they finish."""
        self._full = WorkerIndex()
        """Available workers without room, by the time at which they finish."""
        self._forecasts: dict[bytes, Forecast] = {}
        self._holders: dict[Hashable, dict[bytes, Worker]] = {}
        """Workers with room by the groups of their requests."""
        self._groups: dict[bytes, set[Hashable]] = {}
        """The groups of each worker in `_holders`."""
        self._waits: dict[str, _Wait] = {}
        """Decisions to wait by model, until a worker gets more room."""

    def choose(self, request: Request, backlog_seconds: float, now: float) -> Worker | None:
        """Return the worker with the least added delay; None if it is worth waiting for a full one."""
        self.refresh_changed(now)
        model = request.model or ""
        if self._pool.count(model) == 1:
            return next(iter((*self._idle.smallest(model, 1), *self._busy.smallest(model, 1))), None)
        if self._still_waits(request, model, backlog_seconds, now):
            return None
        room = self._with_room(request, model, now)
        best = min(room, key=lambda each: (each[1].added_delay, each[0].last_used), default=None)
        if best is None:
            return None
        worker, prediction = best
        speed = self._estimates.speed(model)
        # While the request waits for a full worker, this worker does nothing for the requests behind it.
        limit = prediction.finish - (backlog_seconds / speed if speed > 0 else inf)
        full = (self._predict(other, request, now) for other in self._full.smallest(model, FULL_CANDIDATES))
        earliest = min((other.finish for other in full), default=inf) if limit > 0 else inf
        if earliest >= limit:
            return worker
        self._waits[model] = _Wait(request.id, now + (limit - earliest) / 2, backlog_seconds)
        return None

    def _still_waits(self, request: Request, model: str, backlog_seconds: float, now: float) -> bool:
        """Return whether the last decision to wait need not be repeated."""
        wait = self._waits.pop(model, None)
        if wait is None or wait.request_id != request.id or now >= wait.until:
            return False
        if backlog_seconds > wait.backlog_seconds * _NOTABLE_BACKLOG:
            return False
        self._waits[model] = wait
        return True

    def _with_room(self, request: Request, model: str, now: float) -> Iterator[tuple[Worker, Prediction]]:
        """Yield some workers with room, the most promising ones of each kind, unless they must be worse."""
        workers = dict.fromkeys(self._idle.smallest(model, IDLE_CANDIDATES))
        if self._holders:
            for group in groups_of(request.submit, model):
                workers.update(dict.fromkeys(islice(self._holders.get(group, {}).values(), GROUP_CANDIDATES)))
        self._reorder_overdue(model, now)
        workers.update(dict.fromkeys(self._busy.smallest(model, BUSY_CANDIDATES)))
        least = inf
        for worker in workers:
            if model in worker.ready.models:
                cost, forecast = self._cost(worker, request), self._forecasts[worker.id]
                if cost.alone_seconds * forecast.correction <= least:
                    prediction = forecast.with_request(cost, now)
                    least = min(least, prediction.added_delay)
                    yield worker, prediction

    def _predict(self, worker: Worker, request: Request, now: float) -> Prediction:
        return self._forecasts[worker.id].with_request(self._cost(worker, request), now)

    def _cost(self, worker: Worker, request: Request) -> DeviceCost:
        model = request.model or ""
        cost = self._estimates.device_cost(worker, request.submit, model)
        if cost.group in self._groups[worker.id]:
            return cost  # an earlier request has the worker load what it needs
        seconds = self._estimates.loading_seconds(worker, request.submit, model)
        return with_loading(cost, seconds) if seconds else cost

    def refresh(self, worker: Worker, now: float) -> None:
        """Update the indexes after a worker's load, speed or state has changed."""
        forecast = self._forecasts.get(worker.id)
        if forecast is None:
            forecast = self._forecasts[worker.id] = Forecast(worker, now)
        before = forecast.images
        forecast.update(worker, self._estimates, now)
        has_room = worker.room > 0
        if has_room and (forecast.images < before or not before):
            for model in worker.ready.models if self._waits else ():
                self._waits.pop(model, None)
        for index in (self._idle, self._busy, self._full):
            index.discard(worker)
        self._hold(worker, {cost.group for cost in forecast.groups} if has_room else set())
        if has_room and not forecast:
            keys = {
                model: (self._reference_seconds(worker, model) * forecast.correction, worker.last_used)
                for model in worker.ready.models
            }
            self._idle.place(worker, keys)
        elif worker.is_available:
            key = (now + forecast.busy_seconds(), worker.last_used)
            (self._busy if has_room else self._full).place(worker, dict.fromkeys(worker.ready.models, key))

    def _reference_seconds(self, worker: Worker, model: str) -> float:
        seconds = self._estimates.device_cost(worker, REFERENCE, model).alone_seconds
        return seconds if worker.is_warm(model) else seconds + self._estimates.load_seconds(worker, model)

    def _hold(self, worker: Worker, groups: set[Hashable]) -> None:
        """Store for which groups a worker has room and requests."""
        before = self._groups.get(worker.id, set())
        for group in before - groups:
            holders = self._holders[group]
            del holders[worker.id]
            if not holders:
                del self._holders[group]
        for group in groups:
            holders = self._holders.setdefault(group, {})
            holders.pop(worker.id, None)
            holders[worker.id] = worker
        self._groups[worker.id] = groups

    def _reorder_overdue(self, model: str, now: float) -> None:
        """Move workers that should have finished back in the order."""
        for _ in range(_MAX_REORDERED):
            first = self._busy.first(model)
            if first is None or first[0][0] > now:
                return
            worker = first[1]
            forecast = self._forecasts[worker.id]
            forecast.advance(now)
            self._busy.move_first(model, (now + forecast.busy_seconds(), worker.last_used), worker)

    def observe(self, worker: Worker, now: float) -> None:
        """Let the forecast of a worker advance, before what runs there changes."""
        if (forecast := self._forecasts.get(worker.id)) is not None:
            forecast.update(worker, self._estimates, now)

    def answered(self, worker: Worker, request: Request, now: float) -> None:
        """Correct the forecast of a worker by a request that it has finished."""
        self.observe(worker, now)
        if (forecast := self._forecasts.get(worker.id)) is not None:
            forecast.answered(request.id, now)

    def worker_removed(self, worker: Worker) -> None:
        """Forget a worker that is no longer in the pool."""
        super().worker_removed(worker)
        self._forecasts.pop(worker.id, None)
        self._hold(worker, set())
        del self._groups[worker.id]
        for index in (self._idle, self._busy, self._full):
            index.discard(worker)
            for model in worker.ready.models:
                if not self._pool.serves(model):
                    self._waits.pop(model, None)
                    index.discard_model(model)

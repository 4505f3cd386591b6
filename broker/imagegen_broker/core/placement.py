"""An index of the workers with room, ordered by the strategy's key: the next worker in O(log workers)."""

import heapq
from collections.abc import Mapping

from imagegen_broker.core.estimates import seconds_per_request
from imagegen_broker.core.records import Worker
from imagegen_broker.core.strategies import KEYS, Key, Load, plan_least_wait

_UNKNOWN_SECONDS = 1.0
LOAD_SECONDS = 10.0
"""What `least-wait` takes the loading of a model for: nobody tells, and the order of magnitude is enough."""
_MAX_SEEN_MODELS = 4096

_Place = tuple[bool, Key, int, Worker]
"""Whether it comes after the warm ones, the strategy's key, its version, unlike all others, and the worker."""


class Placement:
    """Knows the workers, by model. Tell it of each change with `update`; stale entries are dropped lazily.

    A worker's new place is found when the next one is to be chosen, once for all that has changed until then.

    Of the workers with room, those that have the model warm go first; a cold one takes what finds no room there.
    `least-wait` adds the time of the loading to a cold worker's expected finish instead.
    """

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self._key = KEYS[strategy]
        self._workers: dict[bytes, Worker] = {}
        self._heaps: dict[str, list[_Place]] = {}
        self._serving: dict[str, dict[bytes, Worker]] = {}
        self._plans: dict[str, dict[bytes, int]] = {}
        self._changed: dict[bytes, Worker] = {}
        self._version = 0
        self.generation = 0
        """Grows when a worker comes or goes."""
        self._seen: dict[str | None, float | None] = {}
        """The first seen first; see `seen`."""

    def models(self) -> list[str]:
        """Return the models that some worker serves, sorted."""
        return sorted(model for model, workers in self._serving.items() if workers)

    def serves(self, model: str) -> bool:
        """Say whether some worker serves the model."""
        return bool(self._serving.get(model))

    def serving(self, model: str | None) -> list[Worker]:
        """Return the workers that serve the model and take work; O(workers)."""
        return [] if model is None else [w for w in self._serving.get(model, {}).values() if w.available]

    def has_served(self, model: str) -> bool:
        """Say whether some worker serves the model, or did since the start."""
        return self.serves(model) or model in self._seen

    def seen(self) -> Mapping[str | None, float | None]:
        """Return the models that were served at any time, and the seconds a request of the last worker gone."""
        return self._seen

    @property
    def empty(self) -> bool:
        """Whether there is no worker at all."""
        return not self._workers

    def add(self, worker: Worker) -> None:
        """Take a worker in."""
        self._workers[worker.id] = worker
        self.generation += 1
        for model in worker.ready.models:
            self._seen.setdefault(model, None)
            if len(self._seen) > _MAX_SEEN_MODELS:
                del self._seen[next(iter(self._seen))]
            self._serving.setdefault(model, {})[worker.id] = worker
        self.update(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a worker."""
        self._workers.pop(worker.id, None)
        self._changed.pop(worker.id, None)
        worker.version = -1
        self.generation += 1
        for model in worker.ready.models:
            serving = self._serving.get(model, {})
            serving.pop(worker.id, None)
            if not serving:
                self._serving.pop(model, None)
                self._heaps.pop(model, None)
                if model in self._seen:
                    self._seen[model] = seconds_per_request([worker]) or self._seen[model]

    def update(self, worker: Worker) -> None:
        """Note that the worker's depth, speed or state has changed."""
        if worker.id in self._workers:
            worker.version = -1
            self._changed[worker.id] = worker

    def _place(self, worker: Worker) -> None:
        """Give a worker its place in the order of each of its models, if it has room."""
        if worker.room == 0:
            return
        self._version += 1
        worker.version = self._version
        for model in worker.ready.models:
            heap = self._heaps.setdefault(model, [])
            later = self.strategy != "least-wait" and not worker.is_warm(model)
            heapq.heappush(heap, (later, self._key(self._load(worker, model)), self._version, worker))
            if len(heap) > 64 and len(heap) > 8 * len(self._workers):
                self._heaps[model] = [place for place in heap if place[3].version == place[2]]
                heapq.heapify(self._heaps[model])

    def plan(self, model: str, backlog: int) -> None:
        """Before a round of `choose`: fix how much of the backlog each worker may get (least-wait only)."""
        if self.strategy != "least-wait" or self._peek(model) is None:
            return
        workers = self.serving(model)
        counts = plan_least_wait(backlog, [self._load(worker, model) for worker in workers])
        self._plans[model] = {worker.id: count for worker, count in zip(workers, counts, strict=True)}

    def choose(self, model: str) -> Worker | None:
        """Return the worker that should get the next request for the model; None: it waits."""
        plan = self._plans.get(model)
        while (worker := self._peek(model)) is not None:
            if plan is None:
                return worker
            if plan.get(worker.id, 0) > 0:
                plan[worker.id] -= 1
                return worker
            # Its share is used up; those who come later in the order may still have one.
            heapq.heappop(self._heaps[model])
            plan.setdefault(worker.id, 0)
        return None

    def end_plan(self, model: str) -> None:
        """After a round: put back the workers whose share was used up."""
        for worker_id in self._plans.pop(model, {}):
            worker = self._workers.get(worker_id)
            if worker is not None and worker.room:
                self.update(worker)

    def _peek(self, model: str) -> Worker | None:
        if self._changed:
            for changed in self._changed.values():
                self._place(changed)
            self._changed.clear()
        heap = self._heaps.get(model)
        while heap:
            _, _, version, worker = heap[0]
            if worker.version == version:
                return worker
            heapq.heappop(heap)
        return None

    def _load(self, worker: Worker, model: str) -> Load:
        if self.strategy != "least-wait":
            return Load(worker.depth, worker.last_used, _UNKNOWN_SECONDS)
        seconds = worker.seconds_per_image or self._typical_seconds()
        before = 0.0 if worker.is_warm(model) else LOAD_SECONDS
        return Load(worker.depth, worker.last_used, seconds, before)

    def _typical_seconds(self) -> float:
        """A worker that has not measured itself yet counts as an average one."""
        known = [w.seconds_per_image for w in self._workers.values() if w.seconds_per_image]
        return sum(known) / len(known) if known else _UNKNOWN_SECONDS

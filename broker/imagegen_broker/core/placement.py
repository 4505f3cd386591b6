"""An index of the workers with room, ordered by the strategy's key: the next worker in O(log workers)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf

from imagegen_broker.core.estimates import seconds_per_request
from imagegen_broker.core.records import Worker
from imagegen_broker.core.strategies import KEYS, Key, Load, horizon_of
from imagegen_protocol.lazy_heap import LazyHeap
from imagegen_protocol.limits import MAX_SECONDS_PER_IMAGE, MIN_SECONDS_PER_IMAGE

_UNKNOWN_SECONDS = 1.0
LOAD_SECONDS = 10.0
"""What `least-wait` takes the loading of a model for: nobody tells, and the order of magnitude is enough."""
PLAN_SECONDS_PER_WORKER = 1e-3
PLAN_IMAGES_PER_WORKER = 1 / 8
PLAN_IMAGES = 1 / 8
"""How long a plan of `least-wait` serves, how many images, and for how much of an image's time, whatever the
number of workers: it costs a look at each of them."""
_MAX_SEEN_MODELS = 4096

_Entry = tuple[bool, Key, int, Worker]
"""Whether the worker comes after the warm ones, its key, the unique version of the entry, and the worker."""


def _is_current(entry: _Entry) -> bool:
    return entry[3].version == entry[2]


@dataclass(slots=True)
class _Plan:
    """Made at a time: when the backlog will be done, how much of it has not been given out since, and the rate."""

    made: float
    horizon: float
    left: int
    per_second: float
    given: int = 0

    def is_old(self, now: float, backlog: int, workers: int) -> bool:
        """Say whether so much time has passed, or so many images have gone or come, that a new one pays."""
        changes = self.given + abs(backlog - self.left)
        least = max(PLAN_SECONDS_PER_WORKER * workers, PLAN_IMAGES * workers / self.per_second)
        return now - self.made > least or changes > PLAN_IMAGES_PER_WORKER * workers


class Placement:
    """Knows the workers, by model. Tell it of each change with `update`; stale entries are dropped lazily.

    A worker's new place is found when the next one is to be chosen, once for all that has changed until then.

    Of the workers with room, those that have the model warm go first; a cold one takes what finds no room there.
    `least-wait` adds the time of the loading to a cold worker's expected finish instead.
    """

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self._is_timed = strategy == "least-wait"
        self._key = KEYS[strategy]
        self._workers: dict[bytes, Worker] = {}
        self._heaps: dict[str, tuple[LazyHeap[_Entry], LazyHeap[_Entry]]] = {}
        """By model: of workers whose key holds whenever it is asked for, and of those whose key is a time."""
        self._serving: dict[str, dict[bytes, Worker]] = {}
        self._full: dict[str, dict[bytes, None]] = {}
        """By model: the workers that take work, and have no room now."""
        self._plans: dict[str, _Plan] = {}
        self._changed: dict[bytes, Worker] = {}
        self._version = 0
        self._backlog = 0
        self._now = 0.0
        self._speeds: dict[bytes, float] = {}
        """Seconds of an image of the workers that have told them."""
        self._sum_of_speeds = 0.0
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
        self._sum_of_speeds -= self._speeds.pop(worker.id, 0.0)
        for model in worker.ready.models:
            serving = self._serving.get(model, {})
            serving.pop(worker.id, None)
            self._full.get(model, {}).pop(worker.id, None)
            if not serving:
                self._serving.pop(model, None)
                self._heaps.pop(model, None)
                self._plans.pop(model, None)
                self._full.pop(model, None)
                if model in self._seen:
                    self._seen[model] = seconds_per_request([worker]) or self._seen[model]

    def update(self, worker: Worker) -> None:
        """Note that the worker's depth, speed or state has changed."""
        if worker.id in self._workers:
            worker.version = -1
            self._changed[worker.id] = worker

    def _place(self, worker: Worker) -> None:
        """Give a worker its place in the order of each of its models, if it has room."""
        has_room = worker.room > 0
        if self._is_timed:
            self._learn_speed(worker)
            for model in worker.ready.models:
                full = self._full.setdefault(model, {})
                if has_room or not worker.available:
                    full.pop(worker.id, None)
                else:
                    full[worker.id] = None
        if not has_room:
            return
        self._version += 1
        worker.version = self._version
        times = worker.times_begun() if self._is_timed else []
        is_time = bool(times)
        start = sum(times) / len(times) if times else 0.0
        for model in worker.ready.models:
            heaps = self._heaps.get(model)
            if heaps is None:
                heaps = self._heaps[model] = (LazyHeap(_is_current), LazyHeap(_is_current))
            later = not self._is_timed and not worker.is_warm(model)
            entry = (later, self._key(self._load(worker, model, start)), self._version, worker)
            heaps[is_time].push(entry, max(64, 8 * len(self._workers)))

    def begin(self, backlog: int, now: float) -> None:
        """Before a round of `choose`, each followed by a dispatch: so many images are waited for."""
        self._backlog, self._now = backlog, now

    def end(self, waiting: Callable[[str], int]) -> None:
        """After the rounds of all models: forget the plans of those that nobody is `waiting` for any more."""
        for model in [model for model in self._plans if not waiting(model)]:
            del self._plans[model]

    def choose(self, model: str, images: int = 1) -> Worker | None:
        """Return the worker that should get the next request, for so many images of the model; None: it waits."""
        first = self._first(model)
        if first is None:
            return None
        worker, finish = first
        # Where nobody is full, the first of those with room is the first of all.
        if self._full.get(model) and finish > self._horizon(model):
            return None
        self._backlog -= images
        if (plan := self._plans.get(model)) is not None:
            plan.left -= images
            plan.given += images
        return worker

    def _first(self, model: str) -> tuple[Worker, float] | None:
        """Return the first worker with room, and when it would be done with one more (least-wait only)."""
        if self._changed:
            for changed in self._changed.values():
                self._place(changed)
            self._changed.clear()
        heaps = self._heaps.get(model)
        if heaps is None:
            return None
        steady, timed = heaps
        first = steady.first()
        if not self._is_timed:
            return None if first is None else (first[3], 0.0)
        finish = inf if first is None else self._now + first[1][0]
        while (entry := timed.first()) is not None and entry[1][0] < finish:
            other = entry[3]
            seconds = self._seconds(other)
            key = self._key(self._load(other, model, self._start(other)))
            if key[0] > entry[1][0] + seconds / 2:
                # The worker takes longer than expected: move it back, until it is that late again.
                timed.replace_first((False, key, other.version, other))
                continue
            return other, key[0]
        return None if first is None else (first[3], finish)

    def _horizon(self, model: str) -> float:
        """Return when the whole backlog will be done, if each request goes where it is done first."""
        plan = self._plans.get(model)
        workers = self._serving[model]
        if plan is None or plan.is_old(self._now, self._backlog, len(workers)):
            loads = [
                self._load(worker, model, self._start(worker) - self._now)
                for worker in workers.values()
                if worker.available
            ]
            horizon = self._now + horizon_of(self._backlog, loads)
            per_second = sum(1 / load.seconds for load in loads)
            plan = self._plans[model] = _Plan(self._now, horizon, self._backlog, per_second)
        # Giving requests out moves nothing: their worker has as much more to do. What came or went since does.
        return plan.horizon + (self._backlog - plan.left) / plan.per_second

    def _load(self, worker: Worker, model: str, start: float) -> Load:
        if not self._is_timed:
            return Load(worker.load, worker.last_used, _UNKNOWN_SECONDS)
        before = start if worker.is_warm(model) else start + LOAD_SECONDS
        return Load(worker.load, worker.last_used, self._seconds(worker), before)

    def _start(self, worker: Worker) -> float:
        """Return when a worker began with all that it has: not longer ago than what runs takes."""
        if not worker.begun:
            return self._now
        times = worker.times_begun()
        longest = worker.images_begun() * self._seconds(worker)
        return max(sum(times) / len(times), self._now - longest) if times else self._now

    def _seconds(self, worker: Worker) -> float:
        """Return a worker's seconds of an image; one that has not measured itself counts as an average one."""
        if worker.seconds_per_image:
            return worker.seconds_per_image
        if not self._speeds:
            return _UNKNOWN_SECONDS
        # Rounding errors gather in the sum: next to a very slow worker's, a very fast one's share may be lost.
        average = self._sum_of_speeds / len(self._speeds)
        return min(max(average, MIN_SECONDS_PER_IMAGE), MAX_SECONDS_PER_IMAGE)

    def _learn_speed(self, worker: Worker) -> None:
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

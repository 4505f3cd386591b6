"""The interface of a dispatch strategy, and the registry of strategies by name."""

from abc import ABC, abstractmethod
from typing import ClassVar

from imagegen_broker.core.records import Request, Worker
from imagegen_broker.scheduling.cost_estimates import CostEstimates
from imagegen_broker.scheduling.worker_index import Key, WorkerIndex
from imagegen_broker.scheduling.worker_pool import WorkerPool

STRATEGIES: dict[str, type["Strategy"]] = {}
"""Every strategy by its name, which is a value of the option `--strategy`."""


class Strategy(ABC):
    """Chooses the worker for a request.

    A subclass with a `name` is registered under it. A strategy is notified of every change of a worker, so that
    `choose` need not examine all workers: keep it O(log workers) on average, whatever the length of the queue.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if "name" in vars(cls):
            STRATEGIES[cls.name] = cls

    def __init__(self, pool: WorkerPool, estimates: CostEstimates) -> None:
        self._pool = pool
        self._estimates = estimates
        self._changed: dict[bytes, Worker] = {}

    @abstractmethod
    def choose(self, request: Request, backlog_seconds: float, now: float) -> Worker | None:
        """Return the worker to dispatch a waiting request to; None to leave it in the queue.

        `request.model` is a model that some worker may serve. `backlog_seconds` are the predicted device
        seconds of the other waiting requests for this model. The request is dispatched before the next call.
        """

    @abstractmethod
    def refresh(self, worker: Worker, now: float) -> None:
        """Update the strategy's data about a worker whose load, speed or state has changed."""

    @abstractmethod
    def worker_removed(self, worker: Worker) -> None:
        """Forget a worker that is no longer in the pool."""
        self._changed.pop(worker.id, None)

    def worker_changed(self, worker: Worker) -> None:
        """Mark a worker as changed, so that `refresh` is called for it before the next choice. O(1).

        Without effect if the worker is not in the pool then.
        """
        self._changed[worker.id] = worker

    def observe(self, worker: Worker, now: float) -> None:  # noqa: B027 - most strategies need no time
        """Note the time before the requests that run at a worker change."""

    def answered(self, worker: Worker, request: Request, now: float) -> None:  # noqa: B027
        """Note that a worker has finished a request successfully."""

    def refresh_changed(self, now: float) -> None:
        """Refresh the workers that have changed since the last choice, each once."""
        if self._changed:
            for worker in self._changed.values():
                if worker in self._pool:
                    self.refresh(worker, now)
            self._changed.clear()


class OrderedStrategy(Strategy):
    """Chooses the first worker with room in an order that depends on each worker alone.

    Workers that have the model loaded come first; one that must load it is chosen only if none of them has room.
    """

    def __init__(self, pool: WorkerPool, estimates: CostEstimates) -> None:
        super().__init__(pool, estimates)
        self._index = WorkerIndex()

    @abstractmethod
    def key(self, worker: Worker) -> Key:
        """Return the sort key of a worker; the one with the smallest key is chosen."""

    def choose(self, request: Request, backlog_seconds: float, now: float) -> Worker | None:
        """Return the first worker with room."""
        self.refresh_changed(now)
        first = self._index.first(request.model or "")
        return None if first is None else first[1]

    def refresh(self, worker: Worker, now: float) -> None:
        """Move a worker to its place in the order, or out of it if it has no room."""
        if worker.room > 0:
            key = self.key(worker)
            self._index.place(worker, {model: (not worker.is_warm(model), *key) for model in worker.ready.models})
        else:
            self._index.discard(worker)

    def worker_removed(self, worker: Worker) -> None:
        """Forget a worker that is no longer in the pool."""
        super().worker_removed(worker)
        self._index.discard(worker)
        for model in worker.ready.models:
            if not self._pool.serves(model):
                self._index.discard_model(model)

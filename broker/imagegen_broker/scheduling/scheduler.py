"""`Scheduler`: the waiting requests, the workers, and the strategy that matches them."""

from collections.abc import Iterator

from imagegen_broker.core.records import Request, Worker
from imagegen_broker.scheduling.fair_queue import FairQueue
from imagegen_broker.scheduling.strategies import STRATEGIES
from imagegen_broker.scheduling.worker_pool import WorkerPool


class Scheduler:
    """Decides which request is dispatched next, and to which worker."""

    def __init__(self, strategy: str) -> None:
        """Raises KeyError if there is no strategy of that name."""
        self.queue = FairQueue()
        self.pool = WorkerPool()
        self._strategy = STRATEGIES[strategy](self.pool)

    def add_worker(self, worker: Worker) -> None:
        """Add a worker that has registered."""
        self.pool.add(worker)
        self._strategy.worker_changed(worker)

    def remove_worker(self, worker: Worker) -> None:
        """Remove a worker; no request is dispatched to it any more."""
        self.pool.remove(worker)
        self._strategy.worker_removed(worker)

    def worker_changed(self, worker: Worker) -> None:
        """Take note that the load, the speed or the state of a worker has changed. O(1)."""
        if worker in self.pool:
            self._strategy.worker_changed(worker)

    def choose(self, model: str, now: float) -> tuple[Request, Worker] | None:
        """Return the next request for the model and the worker to dispatch it to, or None if it has to wait."""
        request = self.queue.peek(model)
        if request is None:
            return None
        worker = self._strategy.choose(request, self.queue.images(model), now)
        return None if worker is None else (request, worker)

    def assignments(self, now: float) -> Iterator[tuple[Request, Worker]]:
        """Yield each request that can be dispatched and its worker; dispatch it before asking for the next one."""
        for model in self.queue.models():
            while model is not None and (chosen := self.choose(model, now)) is not None:
                yield chosen

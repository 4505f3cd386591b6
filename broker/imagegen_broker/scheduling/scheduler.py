"""`Scheduler`: the waiting requests, the workers, and the strategy that matches them."""

from collections.abc import Iterator

from imagegen_broker.core.records import Request, Worker
from imagegen_broker.scheduling.cost_estimates import CostEstimates
from imagegen_broker.scheduling.fair_queue import FairQueue
from imagegen_broker.scheduling.strategies import STRATEGIES
from imagegen_broker.scheduling.worker_pool import WorkerPool


class Scheduler:
    """Decides which request is dispatched next, and to which worker."""

    def __init__(self, strategy: str) -> None:
        """Create a scheduler with the named strategy. Raises KeyError if there is none of that name."""
        self.pool = WorkerPool()
        self.estimates = CostEstimates()
        self.queue = FairQueue()
        self.strategy = STRATEGIES[strategy](self.pool, self.estimates)
        self.worker_changed = self.strategy.worker_changed
        """Notify the strategy that the load, the speed or the state of a worker has changed. O(1)."""
        self.observe = self.strategy.observe
        """Note the time before the requests that run at a worker change. O(requests at the worker)."""
        self.answered = self.strategy.answered
        """Note that a worker has finished a request successfully, before it is removed from the worker."""

    def push(self, request: Request, *, requeued: bool = False, first: bool = False) -> None:
        """Predict the device seconds of a request, and add it to the queue (see `FairQueue.push`)."""
        request.seconds = self.estimates.seconds(request.submit, request.model)
        self.queue.push(request, requeued=requeued, first=first)

    def add_worker(self, worker: Worker) -> None:
        """Add a worker that has registered."""
        self.pool.add(worker)
        self.estimates.worker_reported(worker)
        self.strategy.worker_changed(worker)

    def remove_worker(self, worker: Worker) -> None:
        """Remove a worker; no request is dispatched to it any more."""
        self.pool.remove(worker)
        self.estimates.worker_removed(worker, still_served=self.pool.serves)
        self.strategy.worker_removed(worker)

    def worker_reported(self, worker: Worker) -> None:
        """Notify the scheduler of a worker's report, which may contain other costs. O(1)."""
        self.estimates.worker_reported(worker)
        self.worker_changed(worker)

    def assignments(self, now: float) -> Iterator[tuple[Request, Worker]]:
        """Yield each request that can be dispatched and its worker; dispatch it before asking for the next one."""
        queue, strategy = self.queue, self.strategy
        for model in queue.models():
            while model is not None and (request := queue.peek(model)) is not None:
                worker = strategy.choose(request, queue.seconds(model) - request.seconds, now)
                if worker is None:
                    break
                yield request, worker

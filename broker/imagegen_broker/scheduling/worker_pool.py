"""The registered workers by model, and the models that were served before."""

from collections.abc import Mapping

from imagegen_broker.core.records import Worker
from imagegen_broker.scheduling.estimates import seconds_per_request

_MAX_SEEN_MODELS = 4096


class WorkerPool:
    """All registered workers. A lookup by model is O(1); adding or removing a worker is O(its models)."""

    def __init__(self) -> None:
        self._workers: dict[bytes, Worker] = {}
        self._serving: dict[str, dict[bytes, Worker]] = {}
        self._seen: dict[str | None, float | None] = {}
        self.capacity = 0
        """Sum of the workers' capacities."""
        self.generation = 0
        """Number of workers that have registered or left so far."""

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker: Worker) -> bool:
        return worker.id in self._workers

    def models(self) -> list[str]:
        """Return the models that some worker serves, sorted."""
        return sorted(self._serving)

    def serves(self, model: str) -> bool:
        """Return whether some worker serves the model."""
        return model in self._serving

    def has_served(self, model: str) -> bool:
        """Return whether some worker serves the model, or has served it since the broker started."""
        return model in self._serving or model in self._seen

    def count(self, model: str) -> int:
        """Return the number of workers that serve the model."""
        return len(self._serving.get(model, ()))

    def serving(self, model: str | None) -> list[Worker]:
        """Return the workers that serve the model and accept work. O(workers)."""
        return [] if model is None else [w for w in self._serving.get(model, {}).values() if w.is_available]

    def seen(self) -> Mapping[str | None, float | None]:
        """Return each model ever served, oldest first, with the seconds per request of its last worker."""
        return self._seen

    def add(self, worker: Worker) -> None:
        """Add a worker that has registered."""
        self._workers[worker.id] = worker
        self.capacity += worker.ready.capacity
        self.generation += 1
        for model in worker.ready.models:
            self._seen.setdefault(model, None)
            if len(self._seen) > _MAX_SEEN_MODELS:
                del self._seen[next(iter(self._seen))]
            self._serving.setdefault(model, {})[worker.id] = worker

    def remove(self, worker: Worker) -> None:
        """Remove a worker."""
        del self._workers[worker.id]
        self.capacity -= worker.ready.capacity
        self.generation += 1
        for model in dict.fromkeys(worker.ready.models):
            serving = self._serving[model]
            del serving[worker.id]
            if not serving:
                del self._serving[model]
                if model in self._seen:
                    self._seen[model] = seconds_per_request([worker]) or self._seen[model]

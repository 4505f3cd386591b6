"""An index of workers by model, ordered by a key."""

from collections.abc import Mapping

from imagegen_broker.core.records import Worker
from imagegen_protocol.lazy_heap import LazyHeap

Key = tuple[float, ...]
"""Sort key of a worker; the smallest comes first."""
_Entry = tuple[Key, int, Worker]
"""Sort key, version (unique for each call of `place`), and worker."""


class WorkerIndex:
    """Workers by model. The first worker of a model is found in amortised O(log workers)."""

    def __init__(self) -> None:
        self._heaps: dict[str, LazyHeap[_Entry]] = {}
        self._versions: dict[bytes, int] = {}
        """Version of each worker's current entries; the same in the heaps of all its models."""
        self._version = 0

    def discard(self, worker: Worker) -> None:
        """Remove a worker, if it is in the index."""
        self._versions.pop(worker.id, None)

    def discard_model(self, model: str) -> None:
        """Remove all entries of a model."""
        self._heaps.pop(model, None)

    def place(self, worker: Worker, keys: Mapping[str, Key]) -> None:
        """Add a worker, or move it; `keys` are its sort keys by model."""
        self._version += 1
        self._versions[worker.id] = self._version
        limit = 64 + 2 * len(self._versions)
        for model, key in keys.items():
            heap = self._heaps.get(model)
            if heap is None:
                heap = self._heaps[model] = LazyHeap(self._is_current)
            heap.push((key, self._version, worker), limit)

    def first(self, model: str) -> tuple[Key, Worker] | None:
        """Return the worker with the smallest key, and that key; None if there is no worker."""
        heap = self._heaps.get(model)
        entry = None if heap is None else heap.first()
        return None if entry is None else (entry[0], entry[2])

    def smallest(self, model: str, count: int) -> list[Worker]:
        """Return the workers with the smallest keys, at most `count`."""
        heap = self._heaps.get(model)
        return [] if heap is None else [worker for _, _, worker in heap.smallest(count)]

    def move_first(self, model: str, key: Key, worker: Worker) -> None:
        """Change the key of the worker that `first` returned for a model, for that model only."""
        self._heaps[model].replace_first((key, self._versions[worker.id], worker))

    def _is_current(self, entry: _Entry) -> bool:
        return self._versions.get(entry[2].id) == entry[1]

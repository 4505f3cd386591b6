"""`HolderIndex`: the workers that hold each request, as they report it."""

from imagegen_broker.core.records import Request, Worker


class HolderIndex:
    """Finds the workers that list a request id in O(1). An update is O(ids added or removed)."""

    def __init__(self) -> None:
        self._holders: dict[bytes, dict[bytes, Worker]] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def update(self, worker: Worker, listed: frozenset[bytes]) -> None:
        """Store all ids that a worker lists now."""
        for request_id in worker.listed - listed:
            holders = self._holders[request_id]
            del holders[worker.id]
            if not holders:
                del self._holders[request_id]
        for request_id in listed - worker.listed:
            self._holders.setdefault(request_id, {})[worker.id] = worker
        worker.orphans &= listed
        worker.listed = listed

    def orphan_of(self, request: Request) -> Worker | None:
        """Return a worker that already holds a request that this broker receives for the first time, or None."""
        for holder in self._holders.get(request.id, {}).values():
            if request.id in holder.orphans and holder.serves(request.model):
                return holder
        return None

    def copy_of(self, request: Request) -> Worker | None:
        """Return a worker that has the answer to a waiting request, or is expected to produce it."""
        for holder in self._holders.get(request.id, {}).values():
            is_expected = request.id in holder.foreign and not holder.stuck
            if holder.serves(request.model) and (is_expected or request.id in holder.finished):
                return holder
        return None

"""The deadlines of unfinished requests."""

from imagegen_broker.core.records import Request, State
from imagegen_broker.scheduling.lazy_heap import LazyHeap

_UNFINISHED = (State.QUEUED, State.DISPATCHED)


class Deadlines:
    """Requests ordered by deadline; entries of finished requests are dropped lazily."""

    def __init__(self) -> None:
        self._heap: LazyHeap[Request] = LazyHeap(lambda request, _: request.state in _UNFINISHED)
        self._version = 0

    def __len__(self) -> int:
        """Return the number of entries, those of finished requests included."""
        return len(self._heap)

    def add(self, request: Request) -> None:
        """Watch the deadline of a request, if it has one."""
        if request.deadline is not None:
            self._version += 1
            self._heap.push((request.deadline,), self._version, request)

    def next(self) -> float | None:
        """Return the time of the next deadline."""
        first = self._heap.peek()
        return None if first is None else first[0][0]

    def pop_due(self, now: float) -> list[Request]:
        """Remove and return the unfinished requests whose deadline has passed, each once."""
        due: dict[Request, None] = {}
        while (deadline := self.next()) is not None and deadline <= now:
            due[self._heap.pop()] = None
        return list(due)

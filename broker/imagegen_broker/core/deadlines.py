"""Deadlines of requests, earliest first; ended requests leave their entries behind, to be dropped lazily."""

import heapq

from imagegen_broker.core.records import Request, State

_OPEN = (State.QUEUED, State.DISPATCHED)


class Deadlines:
    """A heap of (deadline, order, request) that stays within twice the number of live requests."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []
        self._order = 0

    def add(self, request: Request, live: int) -> None:
        """Watch a request that has a deadline; `live` is how many requests the broker holds."""
        if request.deadline is None:
            return
        self._order += 1
        heapq.heappush(self._heap, (request.deadline, self._order, request))
        if len(self._heap) > 64 + 2 * live:
            self._heap = [entry for entry in self._heap if entry[2].state in _OPEN]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """Return the time of the next deadline."""
        while self._heap and self._heap[0][2].state not in _OPEN:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Request]:
        """Take the unfinished requests whose deadline has passed, each once."""
        if not self._heap:
            return []
        late: dict[Request, None] = {}
        while (deadline := self.next()) is not None and deadline <= now:
            late[heapq.heappop(self._heap)[2]] = None
        return list(late)

"""Deadlines of unfinished requests, earliest first."""

from imagegen_broker.core.records import Request, State
from imagegen_protocol.lazy_heap import LazyHeap

_UNFINISHED = (State.RECEIVING, State.QUEUED, State.DISPATCHED)

_Entry = tuple[float, int, Request]
"""The deadline, the number of the entry, and the request."""


def _is_current(entry: _Entry) -> bool:
    _, number, request = entry
    return request.deadline_entry == number and request.state in _UNFINISHED


class Deadlines:
    """Deadlines by time, at most 64 and twice the number of the broker's requests."""

    def __init__(self) -> None:
        self._heap: LazyHeap[_Entry] = LazyHeap(_is_current)
        self._added = 0

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, request: Request, live: int) -> None:
        """Watch a request that has a deadline; `live` is the number of the broker's requests.

        Call it again for an answered request that returns to the queue: its entry may have been dropped.
        """
        if request.deadline is not None:
            self._added += 1
            request.deadline_entry = self._added
            self._heap.push((request.deadline, self._added, request), 64 + 2 * live)

    def next(self) -> float | None:
        """Return the time of the next deadline; None if there is none."""
        entry = self._heap.first()
        return None if entry is None else entry[0]

    def due(self, now: float) -> list[Request]:
        """Remove and return the unfinished requests whose deadline has passed, each once."""
        late: dict[Request, None] = {}
        while (entry := self._heap.first()) is not None and entry[0] <= now:
            late[self._heap.pop()[2]] = None
        return list(late)

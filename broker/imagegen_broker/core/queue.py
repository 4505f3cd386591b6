"""The one queue: priority first, then fair share between clients, then arrival. Every step is O(1)."""

from collections import OrderedDict
from collections.abc import Iterator

from imagegen_broker.core.records import Request

_Ids = OrderedDict[bytes, Request]


class _Level:
    """The requests of one model and one priority."""

    __slots__ = ("clients", "returned")

    def __init__(self) -> None:
        self.returned: _Ids = OrderedDict()
        self.clients: OrderedDict[bytes, _Ids] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self.returned or self.clients)

    def __iter__(self) -> Iterator[Request]:
        yield from self.returned.values()
        for ids in self.clients.values():
            yield from ids.values()


class FairQueue:
    """Waiting requests, by model.

    Within a model the highest priority goes first; within a priority those that came back from a worker, then one
    of each client in turn, so that a client's 10,000 requests do not starve another's one.
    """

    def __init__(self) -> None:
        self._models: dict[str | None, dict[int, _Level]] = {}
        self._waiting: dict[str | None, int] = {}

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def models(self) -> list[str | None]:
        """Return the models that are waited for."""
        return list(self._waiting)

    def waiting(self, model: str | None) -> int:
        """Return how many requests wait for the model."""
        return self._waiting.get(model, 0)

    def push(self, request: Request, *, front: bool = False) -> None:
        """Add a request; `front` puts it before those of its priority that never left the queue."""
        levels = self._models.setdefault(request.model, {})
        level = levels.get(request.priority)
        if level is None:
            level = levels[request.priority] = _Level()
        if front:
            level.returned[request.id] = request
        else:
            level.clients.setdefault(request.client.id, OrderedDict())[request.id] = request
        self._waiting[request.model] = self._waiting.get(request.model, 0) + 1

    def peek(self, model: str | None) -> Request | None:
        """Return the next request for the model, or None."""
        levels = self._models.get(model)
        if not levels:
            return None
        level = levels[max(levels)]
        if level.returned:
            return next(iter(level.returned.values()))
        return next(iter(next(iter(level.clients.values())).values()))

    def of(self, model: str | None) -> list[Request]:
        """Return all that wait for a model."""
        levels = self._models.get(model, {})
        return [request for level in levels.values() for request in level]

    def end_turn(self, request: Request) -> None:
        """Send a waiting request's client to the end of its line, unless the request came back from a worker."""
        level = self._models[request.model][request.priority]
        if request.id not in level.returned:
            level.clients.move_to_end(request.client.id)

    def remove(self, request: Request) -> None:
        """Take a request out. Raises KeyError if it does not wait."""
        levels = self._models[request.model]
        level = levels[request.priority]
        if request.id in level.returned:
            del level.returned[request.id]
        else:
            ids = level.clients[request.client.id]
            del ids[request.id]
            if not ids:
                del level.clients[request.client.id]
        if not level:
            del levels[request.priority]
        left = self._waiting[request.model] - 1
        if left:
            self._waiting[request.model] = left
        else:
            del self._waiting[request.model], self._models[request.model]

    def __iter__(self) -> Iterator[Request]:
        for levels in self._models.values():
            for level in levels.values():
                yield from level

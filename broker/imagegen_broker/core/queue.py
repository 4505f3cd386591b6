"""The one queue: priority first, then fair share between clients, then arrival. Every step is O(1).

There are at most 201 priorities: what looks at each of them counts as O(1), too.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from imagegen_broker.core.records import Request

_Ids = OrderedDict[bytes, Request]


class _Level:
    """The requests of one model and one priority: those that came back, then a line for each client."""

    __slots__ = ("clients", "returned", "waiting")

    def __init__(self) -> None:
        self.returned: _Ids = OrderedDict()
        self.clients: OrderedDict[bytes, _Ids] = OrderedDict()
        self.waiting = 0

    def __iter__(self) -> Iterator[Request]:
        """Yield all in the order of their turns; the first n cost O(n)."""
        yield from self.returned.values()
        lines: Iterable[Iterator[Request]] = (iter(line.values()) for line in self.clients.values())
        while lines:
            lasting = []
            for line in lines:
                if (request := next(line, None)) is not None:
                    yield request
                    lasting.append(line)
            lines = lasting

    def line_of(self, request: Request) -> _Ids:
        """Return the line in which a request waits."""
        return self.returned if request.id in self.returned else self.clients[request.client.id]

    def place_at_most(self, request: Request) -> int:
        """Return how many of this level go before a request, were all other lines as long as its own."""
        line = self.line_of(request)
        ahead = request.ticket - next(iter(line.values())).ticket
        if line is self.returned:
            return ahead
        ahead += (len(self.clients) - 1) * (ahead + 1)
        return len(self.returned) + min(ahead, self.waiting - len(self.returned) - 1)


class FairQueue:
    """Waiting requests, by model.

    Within a model the highest priority goes first; within a priority those that came back from a worker, then one
    of each client in turn, so that a client's 10,000 requests do not starve another's one.
    """

    def __init__(self) -> None:
        self._models: dict[str | None, dict[int, _Level]] = {}
        self._waiting: dict[str | None, int] = {}
        self._images: dict[str | None, int] = {}

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def models(self) -> list[str | None]:
        """Return the models that are waited for."""
        return list(self._waiting)

    def waiting(self, model: str | None) -> int:
        """Return how many requests wait for the model."""
        return self._waiting.get(model, 0)

    def images(self, model: str | None) -> int:
        """Return how many images those ask for that wait for the model."""
        return self._images.get(model, 0)

    def waiting_by_model(self) -> dict[str | None, int]:
        """Return a copy of how many requests wait for each model that is waited for."""
        return self._waiting.copy()

    def push(self, request: Request, *, front: bool = False) -> None:
        """Add a request; `front` puts it before those of its priority that never left the queue."""
        levels = self._models.setdefault(request.model, {})
        level = levels.get(request.priority)
        if level is None:
            level = levels[request.priority] = _Level()
        line = level.returned if front else level.clients.setdefault(request.client.id, OrderedDict())
        request.ticket = next(reversed(line.values())).ticket + 1 if line else 0
        line[request.id] = request
        level.waiting += 1
        self._waiting[request.model] = self._waiting.get(request.model, 0) + 1
        self._images[request.model] = self._images.get(request.model, 0) + request.images

    def peek(self, model: str | None) -> Request | None:
        """Return the next request for the model, or None."""
        levels = self._models.get(model)
        if not levels:
            return None
        level = levels[max(levels)]
        if level.returned:
            return next(iter(level.returned.values()))
        return next(iter(next(iter(level.clients.values())).values()))

    def in_order(self, model: str | None) -> Iterator[Request]:
        """Yield all that wait for a model, the next one first, as they would go if nothing came or left."""
        levels = self._models.get(model, {})
        for priority in sorted(levels, reverse=True):
            yield from levels[priority]

    def place_at_most(self, request: Request) -> int:
        """Return an upper bound of how many go before a waiting request, in O(1), where `in_order` counts them.

        It is exact where one client waits alone, and for the first request of a client that has just come.
        """
        levels = self._models[request.model]
        higher = sum(level.waiting for priority, level in levels.items() if priority > request.priority)
        return higher + levels[request.priority].place_at_most(request)

    def end_turn(self, request: Request) -> None:
        """Send a waiting request's client to the end of its line, unless the request came back from a worker."""
        level = self._models[request.model][request.priority]
        if request.id not in level.returned:
            level.clients.move_to_end(request.client.id)

    def remove(self, request: Request) -> None:
        """Take a request out. Raises KeyError if it does not wait."""
        levels = self._models[request.model]
        level = levels[request.priority]
        line = level.line_of(request)
        del line[request.id]
        level.waiting -= 1
        if not line and line is not level.returned:
            del level.clients[request.client.id]
        if not level.waiting:
            del levels[request.priority]
        left = self._waiting[request.model] - 1
        if left:
            self._waiting[request.model] = left
            self._images[request.model] -= request.images
        else:
            del self._waiting[request.model], self._images[request.model], self._models[request.model]

    def __iter__(self) -> Iterator[Request]:
        for model in self._models:
            yield from self.in_order(model)

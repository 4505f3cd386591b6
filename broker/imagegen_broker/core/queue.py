"""The queue: priority first, then requests that came back from a worker, then fair share between clients.

A request waits in one line: that of its client, its model, its priority, and whether it came back from a worker.
Every operation is O(1) in the number of requests and clients. `hold` and `resume` take one step for each line of
the client. A look at each priority counts as O(1): there are at most 201.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from imagegen_broker.core.records import Request


class _Line:
    """The waiting requests of one client, in order, and how many images they ask for."""

    __slots__ = ("images", "requests")

    def __init__(self) -> None:
        self.requests: OrderedDict[bytes, Request] = OrderedDict()
        self.images = 0

    def push(self, request: Request, *, first: bool) -> None:
        """Add a request at the end, or, where it is to go `first`, at the front."""
        requests = self.requests
        if not requests:
            request.ticket = 0
        elif first:
            request.ticket = next(iter(requests.values())).ticket - 1
        else:
            request.ticket = next(reversed(requests.values())).ticket + 1
        requests[request.id] = request
        if first:
            requests.move_to_end(request.id, last=False)
        self.images += request.images


class _Turns:
    """Lines whose clients take turns. The lines of clients that are held out have no turn."""

    __slots__ = ("held", "lines", "ready")

    def __init__(self) -> None:
        self.lines: OrderedDict[bytes, _Line] = OrderedDict()
        """By client, the next one first."""
        self.held: dict[bytes, _Line] = {}
        self.ready = 0
        """How many requests are in `lines`."""

    def __bool__(self) -> bool:
        return bool(self.lines or self.held)

    def __iter__(self) -> Iterator[Request]:
        """Yield all that have a turn, in the order of the turns; the first n cost O(n)."""
        lines: Iterable[Iterator[Request]] = (iter(line.requests.values()) for line in self.lines.values())
        while lines:
            lasting = []
            for line in lines:
                if (request := next(line, None)) is not None:
                    yield request
                    lasting.append(line)
            lines = lasting

    def place_at_most(self, request: Request) -> int:
        """Return how many go before a request with a turn, if all other lines were as long as its own."""
        line = self.lines[request.client.id].requests
        ahead = request.ticket - next(iter(line.values())).ticket
        return min(ahead + (len(self.lines) - 1) * (ahead + 1), self.ready - 1)


class _Level:
    """The requests of one model and one priority."""

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.returned = _Turns()
        """Requests that came back from a worker; they go before the fresh ones."""
        self.fresh = _Turns()

    @property
    def ready(self) -> int:
        """How many requests have a turn."""
        return self.returned.ready + self.fresh.ready

    def turns_of(self, request: Request) -> _Turns:
        """Return the turns in which a request waits."""
        return self.returned if request.returned else self.fresh

    def place_at_most(self, request: Request) -> int:
        """Return an upper bound of how many of this level go before a request with a turn."""
        before = 0 if request.returned else self.returned.ready
        return before + self.turns_of(request).place_at_most(request)


class FairQueue:
    """Waiting requests, by model.

    Within a model the highest priority goes first; within a priority, requests that came back from a worker. Among
    either, clients take turns of one request, so that a client's 10,000 requests do not starve another's one.
    Requests of a client that is held out wait, and are neither returned by `peek` nor counted by `images`.
    """

    def __init__(self) -> None:
        self._models: dict[str | None, dict[int, _Level]] = {}
        self._waiting: dict[str | None, int] = {}
        self._ready: dict[str | None, int] = {}
        self._images: dict[str | None, int] = {}
        self._lines: dict[bytes, dict[_Turns, str | None]] = {}
        """Where each client has a line, and the model of that line."""
        self._held: set[bytes] = set()
        """Clients that are held out."""

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def models(self) -> list[str | None]:
        """Return the models that requests wait for."""
        return list(self._waiting)

    def waiting(self, model: str | None) -> int:
        """Return how many requests wait for the model, those of held-out clients included."""
        return self._waiting.get(model, 0)

    def images(self, model: str | None) -> int:
        """Return how many images are asked for by the requests that may be dispatched for the model."""
        return self._images.get(model, 0)

    def ready_by_model(self) -> dict[str | None, int]:
        """Return a copy of how many requests may be dispatched for each model that requests wait for."""
        return self._ready.copy()

    # ---- clients that are held out --------------------------------------------------------------

    @property
    def held_clients(self) -> int:
        """How many clients are held out."""
        return len(self._held)

    def is_held(self, client_id: bytes) -> bool:
        """Return whether a client is held out."""
        return client_id in self._held

    def hold(self, client_id: bytes) -> None:
        """Dispatch no request of a client until `resume`. O(lines of the client)."""
        if client_id in self._held:
            return
        self._held.add(client_id)
        for turns, model in self._lines.get(client_id, {}).items():
            line = turns.held[client_id] = turns.lines.pop(client_id)
            turns.ready -= len(line.requests)
            self._ready[model] -= len(line.requests)
            self._images[model] -= line.images

    def resume(self, client_id: bytes) -> None:
        """Give a held-out client its turns again, behind the other clients. O(lines of the client)."""
        if client_id not in self._held:
            return
        self._held.discard(client_id)
        for turns, model in self._lines.get(client_id, {}).items():
            line = turns.lines[client_id] = turns.held.pop(client_id)
            turns.ready += len(line.requests)
            self._ready[model] += len(line.requests)
            self._images[model] += line.images

    # ---- requests -------------------------------------------------------------------------------

    def push(self, request: Request, *, returned: bool = False, first: bool = False) -> None:
        """Add a request. `returned`: it came back from a worker. `first`: put it first in its client's line."""
        client_id, model = request.client.id, request.model
        levels = self._models.setdefault(model, {})
        level = levels.get(request.priority)
        if level is None:
            level = levels[request.priority] = _Level()
        request.returned = returned
        turns = level.turns_of(request)
        is_held = client_id in self._held
        lines = turns.held if is_held else turns.lines
        line = lines.get(client_id)
        if line is None:
            line = lines[client_id] = _Line()
            self._lines.setdefault(client_id, {})[turns] = model
        line.push(request, first=first)
        self._waiting[model] = self._waiting.get(model, 0) + 1
        if self._waiting[model] == 1:
            self._ready[model] = self._images[model] = 0
        if not is_held:
            turns.ready += 1
            self._ready[model] += 1
            self._images[model] += request.images

    def peek(self, model: str | None) -> Request | None:
        """Return the next request that may be dispatched for the model, or None."""
        levels = self._models.get(model)
        if not levels:
            return None
        for priority in sorted(levels, reverse=True):
            level = levels[priority]
            lines = level.returned.lines or level.fresh.lines
            if lines:
                return next(iter(next(iter(lines.values())).requests.values()))
        return None

    def in_order(self, model: str | None) -> Iterator[Request]:
        """Yield all that wait for a model in the order of dispatch if nothing came or left; held clients last."""
        levels = self._models.get(model, {})
        order = sorted(levels, reverse=True)
        for priority in order:
            yield from levels[priority].returned
            yield from levels[priority].fresh
        for priority in order:
            for turns in (levels[priority].returned, levels[priority].fresh):
                for line in turns.held.values():
                    yield from line.requests.values()

    def place_at_most(self, request: Request) -> int:
        """Return an upper bound of how many go before a waiting request, in O(1), where `in_order` counts them.

        It is exact where one client waits alone, and for the first request of a client that has just come.
        """
        if request.client.id in self._held:
            return self._waiting[request.model] - 1
        levels = self._models[request.model]
        higher = sum(level.ready for priority, level in levels.items() if priority > request.priority)
        return higher + levels[request.priority].place_at_most(request)

    def end_turn(self, request: Request) -> None:
        """Send the client of a request that `peek` returned to the end of its turns."""
        level = self._models[request.model][request.priority]
        level.turns_of(request).lines.move_to_end(request.client.id)

    def remove(self, request: Request) -> None:
        """Take a request out. Raises KeyError if it does not wait."""
        client_id, model = request.client.id, request.model
        levels = self._models[model]
        level = levels[request.priority]
        turns = level.turns_of(request)
        is_held = client_id in self._held
        lines = turns.held if is_held else turns.lines
        line = lines[client_id]
        del line.requests[request.id]
        line.images -= request.images
        if not is_held:
            turns.ready -= 1
            self._ready[model] -= 1
            self._images[model] -= request.images
        if not line.requests:
            self._drop_line(client_id, turns, lines)
        if not level.returned and not level.fresh:
            del levels[request.priority]
        left = self._waiting[model] - 1
        if left:
            self._waiting[model] = left
        else:
            del self._waiting[model], self._ready[model], self._images[model], self._models[model]

    def _drop_line(self, client_id: bytes, turns: _Turns, lines: "dict[bytes, _Line]") -> None:
        del lines[client_id]
        own = self._lines[client_id]
        del own[turns]
        if not own:
            del self._lines[client_id]

    def __iter__(self) -> Iterator[Request]:
        for model in self._models:
            yield from self.in_order(model)

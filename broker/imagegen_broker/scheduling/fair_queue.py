"""The queue: priority first, then requests that came back from a worker, then fair share.

The owners of clients take turns, and the clients of one owner take turns within its turn. The owner of a client is
its key, or the client itself without keys: a key with many connections gets no more turns than another.

A request waits in one client queue, which belongs to its client, its model, its priority, and to whether it came
back from a worker. Every operation is O(1) in the number of requests and clients; `pause` and `resume` are
O(client queues of the client). Iterating over the priorities counts as O(1): there are at most 201.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator

from imagegen_broker.core.records import Client, Request


class _ClientQueue:
    """The waiting requests of one client for one model, in order, and the total of their predicted seconds."""

    __slots__ = ("model", "requests", "seconds")

    def __init__(self, model: str | None) -> None:
        self.model = model
        self.requests: OrderedDict[bytes, Request] = OrderedDict()
        self.seconds = 0.0

    def push(self, request: Request, *, first: bool) -> None:
        """Add a request at the end, or at the front if `first`."""
        requests = self.requests
        if not requests:
            request.queue_index = 0
        elif first:
            request.queue_index = next(iter(requests.values())).queue_index - 1
        else:
            request.queue_index = next(reversed(requests.values())).queue_index + 1
        requests[request.id] = request
        if first:
            requests.move_to_end(request.id, last=False)
        self.seconds += request.seconds


_Turns = OrderedDict[bytes, _ClientQueue]
"""Queues by client; the next one comes first."""


class _RoundRobin:
    """Client queues that are served in turn. The queues of paused clients have no turn."""

    __slots__ = ("paused", "ready", "turns")

    def __init__(self) -> None:
        self.turns: OrderedDict[bytes, _Turns] = OrderedDict()
        """By owner; the next one comes first."""
        self.paused: dict[bytes, _ClientQueue] = {}
        self.ready = 0
        """Number of requests in `turns`."""

    def __bool__(self) -> bool:
        return bool(self.turns or self.paused)

    def __iter__(self) -> Iterator[Request]:
        """Yield the requests of clients that are not paused, in the order of turns. O(n) for the first n."""
        return _in_turn(
            _in_turn(iter(queue.requests.values()) for queue in queues.values()) for queues in self.turns.values()
        )

    def end_turn(self, client: Client) -> None:
        """Move a client behind the others of its owner, and the owner behind the other owners."""
        self.turns[client.owner].move_to_end(client.id)
        self.turns.move_to_end(client.owner)

    def add(self, client: Client, queue: _ClientQueue, *, is_paused: bool) -> None:
        """Add the queue of a client, behind the others."""
        queues = self.paused if is_paused else self.turns.setdefault(client.owner, OrderedDict())
        queues[client.id] = queue

    def remove(self, client: Client, *, is_paused: bool) -> None:
        """Remove the queue of a client."""
        if is_paused:
            del self.paused[client.id]
            return
        queues = self.turns[client.owner]
        del queues[client.id]
        if not queues:
            del self.turns[client.owner]

    def max_position(self, request: Request) -> int:
        """Return an upper bound of the number of requests that precede this one, in O(1).

        Before the nth request of a client, each other client, and each other owner, gets at most n turns.
        """
        queues = self.turns[request.client.owner]
        requests = queues[request.client.id].requests
        ahead = request.queue_index - next(iter(requests.values())).queue_index
        ahead += (len(queues) - 1) * (ahead + 1)
        return min(ahead + (len(self.turns) - 1) * (ahead + 1), self.ready - 1)


def _in_turn(queues: Iterable[Iterator[Request]]) -> Iterator[Request]:
    """Yield one request of each queue in turn."""
    while queues:
        remaining = []
        for queue in queues:
            if (request := next(queue, None)) is not None:
                yield request
                remaining.append(queue)
        queues = remaining


class _PriorityLevel:
    """The requests of one model and one priority."""

    __slots__ = ("new", "requeued")

    def __init__(self) -> None:
        self.requeued = _RoundRobin()
        """Requests that came back from a worker; they precede the others."""
        self.new = _RoundRobin()

    @property
    def ready(self) -> int:
        """The number of requests whose clients are not paused."""
        return self.requeued.ready + self.new.ready

    def part_of(self, request: Request) -> _RoundRobin:
        """Return the round robin in which a request waits."""
        return self.requeued if request.requeued else self.new

    def max_position(self, request: Request) -> int:
        """Return an upper bound of the number of requests of this level that precede this one."""
        before = 0 if request.requeued else self.requeued.ready
        return before + self.part_of(request).max_position(request)


class FairQueue:
    """Waiting requests, by model.

    Within a model the highest priority goes first; within a priority, requests that came back from a worker.
    Otherwise owners take turns of one request, so one key's 10,000 requests do not starve another key's one.
    Requests of a paused client wait: they are neither returned by `peek` nor counted by `seconds`.
    """

    def __init__(self) -> None:
        self._models: dict[str | None, dict[int, _PriorityLevel]] = {}
        self._waiting: dict[str | None, int] = {}
        self._ready: dict[str | None, int] = {}
        self._seconds: dict[str | None, float] = {}
        self._client_queues: dict[bytes, dict[_RoundRobin, _ClientQueue]] = {}
        """The queues of each client, by the round robin that they are in."""
        self._paused: set[bytes] = set()
        """Ids of the paused clients."""

    def __len__(self) -> int:
        return sum(self._waiting.values())

    def models(self) -> list[str | None]:
        """Return the models that requests wait for."""
        return list(self._waiting)

    def waiting(self, model: str | None) -> int:
        """Return how many requests wait for the model, those of paused clients included."""
        return self._waiting.get(model, 0)

    def seconds(self, model: str | None) -> float:
        """Return the predicted device seconds of the requests that may be dispatched for the model."""
        return max(0.0, self._seconds.get(model, 0.0))

    def average_seconds(self, model: str | None) -> float:
        """Return the predicted device seconds of an average request that may be dispatched for the model."""
        ready = self._ready.get(model, 0)
        return self.seconds(model) / ready if ready else 0.0

    def ready_by_model(self) -> dict[str | None, int]:
        """Return a copy of how many requests may be dispatched, for each model that requests wait for."""
        return self._ready.copy()

    # ---- paused clients -------------------------------------------------------------------------

    @property
    def paused_clients(self) -> int:
        """The number of paused clients."""
        return len(self._paused)

    def is_paused(self, client_id: bytes) -> bool:
        """Return whether a client is paused."""
        return client_id in self._paused

    def pause(self, client: Client) -> None:
        """Dispatch no request of a client until `resume`. O(client queues of the client)."""
        if client.id in self._paused:
            return
        self._paused.add(client.id)
        for part, queue in self._client_queues.get(client.id, {}).items():
            part.remove(client, is_paused=False)
            part.add(client, queue, is_paused=True)
            part.ready -= len(queue.requests)
            self._ready[queue.model] -= len(queue.requests)
            self._seconds[queue.model] -= queue.seconds

    def resume(self, client: Client) -> None:
        """Give a paused client turns again, behind the other clients. O(client queues of the client)."""
        if client.id not in self._paused:
            return
        self._paused.discard(client.id)
        for part, queue in self._client_queues.get(client.id, {}).items():
            part.remove(client, is_paused=True)
            part.add(client, queue, is_paused=False)
            part.ready += len(queue.requests)
            self._ready[queue.model] += len(queue.requests)
            self._seconds[queue.model] += queue.seconds

    # ---- requests -------------------------------------------------------------------------------

    def push(self, request: Request, *, requeued: bool = False, first: bool = False) -> None:
        """Add a request. `requeued`: it came back from a worker. `first`: put it first in its client's queue."""
        client, model, priority = request.client, request.model, request.priority
        levels = self._models.setdefault(model, {})
        level = levels.get(priority)
        if level is None:
            level = levels[priority] = _PriorityLevel()
        request.requeued = requeued
        part = level.part_of(request)
        is_paused = client.id in self._paused
        own = self._client_queues.setdefault(client.id, {})
        queue = own.get(part)
        if queue is None:
            queue = own[part] = _ClientQueue(model)
            part.add(client, queue, is_paused=is_paused)
        queue.push(request, first=first)
        self._waiting[model] = self._waiting.get(model, 0) + 1
        if self._waiting[model] == 1:
            self._ready[model], self._seconds[model] = 0, 0.0
        if not is_paused:
            part.ready += 1
            self._ready[model] += 1
            self._seconds[model] += request.seconds

    def peek(self, model: str | None) -> Request | None:
        """Return the next request that may be dispatched for the model, or None."""
        levels = self._models.get(model)
        if levels is None:
            return None
        for priority in sorted(levels, reverse=True) if len(levels) > 1 else levels:
            level = levels[priority]
            turns = level.requeued.turns or level.new.turns
            if turns:
                queue = next(iter(next(iter(turns.values())).values()))
                return next(iter(queue.requests.values()))
        return None

    def in_order(self, model: str | None) -> Iterator[Request]:
        """Yield all requests for a model in their current order of dispatch; those of paused clients come last."""
        levels = self._models.get(model, {})
        order = sorted(levels, reverse=True)
        for priority in order:
            yield from levels[priority].requeued
            yield from levels[priority].new
        for priority in order:
            for part in (levels[priority].requeued, levels[priority].new):
                for queue in part.paused.values():
                    yield from queue.requests.values()

    def max_position(self, request: Request) -> int:
        """Return an upper bound of how many requests precede a waiting one, in O(1); `in_order` counts exactly.

        It is exact if only one client waits, and for the first request of an owner that has just arrived.
        """
        if request.client.id in self._paused:
            return self._waiting[request.model] - 1
        levels = self._models[request.model]
        higher = sum(level.ready for priority, level in levels.items() if priority > request.priority)
        return higher + levels[request.priority].max_position(request)

    def end_turn(self, request: Request) -> None:
        """End the turn of the client of the request that `peek` returned, and of its owner; both move behind."""
        level = self._models[request.model][request.priority]
        level.part_of(request).end_turn(request.client)

    def remove(self, request: Request) -> None:
        """Remove a request. Raises KeyError if it does not wait."""
        client, model, seconds = request.client, request.model, request.seconds
        levels = self._models[model]
        level = levels[request.priority]
        part = level.part_of(request)
        is_paused = client.id in self._paused
        queue = self._client_queues[client.id][part]
        del queue.requests[request.id]
        queue.seconds -= seconds
        if not is_paused:
            part.ready -= 1
            self._ready[model] -= 1
            self._seconds[model] -= seconds
        if not queue.requests:
            part.remove(client, is_paused=is_paused)
            self._remove_client_queue(client.id, part)
        if not level.requeued and not level.new:
            del levels[request.priority]
        remaining = self._waiting[model] - 1
        if remaining:
            self._waiting[model] = remaining
        else:
            del self._waiting[model], self._ready[model], self._seconds[model], self._models[model]

    def _remove_client_queue(self, client_id: bytes, part: _RoundRobin) -> None:
        own = self._client_queues[client_id]
        del own[part]
        if not own:
            del self._client_queues[client_id]

    def __iter__(self) -> Iterator[Request]:
        for model in self._models:
            yield from self.in_order(model)

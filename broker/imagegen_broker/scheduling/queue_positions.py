"""Queue positions and estimated starts of waiting requests, at a cost that does not grow with the queue."""

from collections import OrderedDict
from itertools import islice
from typing import NamedTuple

from imagegen_broker.core.counters import Rate
from imagegen_broker.core.records import Request
from imagegen_broker.scheduling.cost_estimates import REFERENCE
from imagegen_broker.scheduling.estimates import Backlog, backlog_at, seconds_to_start
from imagegen_broker.scheduling.scheduler import Scheduler

EXACT_POSITIONS = 1000
"""Number of positions that are counted from the head of the queue in each interval, over all models."""
FURTHER_POSITIONS = 250
"""Number of requests further back that are examined in each interval, in turn."""
_NOTABLE_SECONDS = 1.0
_NOTABLE_SHARE = 0.2
"""An estimated start is reported again if it has changed by more than this share and `_NOTABLE_SECONDS`."""


class QueuePosition(NamedTuple):
    """A queue position to report to the client of a request."""

    request: Request
    position: int
    """Maximum number of requests that precede it."""
    seconds_to_start: float | None


class QueuePositions:
    """Finds the positions to report: when a request enters the queue, then once an interval if it has changed."""

    def __init__(self, scheduler: Scheduler, answer_rate: Rate) -> None:
        self._scheduler = scheduler
        self._answer_rate = answer_rate
        self._new: dict[bytes, Request] = {}
        """Requests that have entered the queue since the last report."""
        self._reported: OrderedDict[bytes, Request] = OrderedDict()
        """Requests whose position has been reported; the one examined longest ago comes first."""
        self._backlogs: dict[str | None, Backlog] = {}
        """Cache for one interval, since computing a backlog is O(workers)."""
        self._generation = 0

    @property
    def followed(self) -> set[bytes]:
        """The ids of the waiting requests whose clients receive their queue positions."""
        return {*self._new, *self._reported}

    def follow(self, request: Request) -> None:
        """Report the position of a waiting request from now on, if its client requested progress."""
        self.unfollow(request)
        request.reported_position = None
        if request.progress:
            self._new[request.id] = request

    def unfollow(self, request: Request) -> None:
        """Report no more positions of a request."""
        if self._new or self._reported:
            self._new.pop(request.id, None)
            self._reported.pop(request.id, None)

    def new(self) -> list[QueuePosition]:
        """Return upper bounds for the requests that have entered the queue since the last call."""
        if not self._new:
            return []
        new, self._new = self._new, {}
        self._reported.update(new)
        found = (self._examine_roughly(request) for request in new.values())
        return [position for position in found if position is not None]

    def tick(self) -> list[QueuePosition]:
        """Return exact positions at the head of the queue, and some upper bounds behind it. Once an interval."""
        queue = self._scheduler.queue
        self._backlogs.clear()
        models = queue.models()
        found: list[QueuePosition | None] = []
        for model in models[:EXACT_POSITIONS] if self._reported else ():
            first = islice(queue.in_order(model), max(1, EXACT_POSITIONS // len(models)))
            seconds = 0.0
            for position, request in enumerate(first):
                if request.id in self._reported:
                    found.append(self._examine(request, position, seconds))
                seconds += request.seconds
        for _ in range(min(FURTHER_POSITIONS, len(self._reported) - len(found))):
            request = next(iter(self._reported.values()))
            found.append(self._examine_roughly(request))
        return [position for position in found if position is not None]

    def _examine_roughly(self, request: Request) -> QueuePosition | None:
        """As `_examine`, with an upper bound of the position; each request ahead counts as an average one."""
        queue = self._scheduler.queue
        position = queue.max_position(request)
        return self._examine(request, position, position * queue.average_seconds(request.model))

    def _examine(self, request: Request, position: int, seconds_ahead: float) -> QueuePosition | None:
        """Return the position to report for a request; None if it is about the same as the last reported one."""
        self._reported.move_to_end(request.id)
        if request.client.blocked:
            return None
        # A paused client's requests start when it acknowledges, which cannot be estimated.
        is_paused = self._scheduler.queue.is_paused(request.client.id)
        current = (position, None if is_paused else self._seconds(request.model, position, seconds_ahead))
        if request.reported_position is not None and not _differs(request.reported_position, current):
            return None
        request.reported_position = current
        return QueuePosition(request, *current)

    def _seconds(self, model: str | None, position: int, seconds_ahead: float) -> float | None:
        pool, estimates = self._scheduler.pool, self._scheduler.estimates
        if self._generation != pool.generation:
            self._generation = pool.generation
            self._backlogs.clear()
        backlog = self._backlogs.get(model)
        is_measured = estimates.is_measured(model)
        if backlog is None:
            speed = estimates.speed(model) if is_measured else 0.0
            average = estimates.seconds(REFERENCE, model)
            backlog = backlog_at(pool.serving(model), average, speed, self._answer_rate.per_second)
            self._backlogs[model] = backlog
        return seconds_to_start(position, seconds_ahead if is_measured else position, backlog)


def _differs(reported: tuple[int, float | None], current: tuple[int, float | None]) -> bool:
    before, after = reported[1], current[1]
    if reported[0] != current[0] or before is None or after is None:
        return reported != current
    return abs(after - before) > max(_NOTABLE_SECONDS, _NOTABLE_SHARE * before)

"""Prediction of when a worker finishes its requests: a fluid model of batching by groups that share forwards."""

from collections.abc import Hashable, Sequence
from heapq import heappop, heappush
from math import ceil
from typing import NamedTuple

MAX_EXACT = 64
"""Number of requests at a worker up to which their shares are followed one by one."""
_NEGLIGIBLE = 1e-9
"""Relative difference below which two requests finish together."""


class DeviceCost(NamedTuple):
    """The device time of one request on one worker."""

    group: Hashable
    """Requests of equal groups share forwards."""
    images: int
    forwards: float
    """Number of forwards; the time outside them counts as further forwards."""
    forward_seconds: float
    """Seconds of a forward, whatever the number of its images."""
    image_seconds: float
    """Seconds that one image adds to a forward."""

    @property
    def alone_seconds(self) -> float:
        """Seconds of the request on an idle worker."""
        return self.forwards * (self.forward_seconds + self.image_seconds * self.images)


class Job(NamedTuple):
    """A request at a worker."""

    cost: DeviceCost
    left: float
    """Remaining forwards."""
    is_running: bool


class _Group:
    """The running requests that share forwards."""

    __slots__ = ("done", "ends", "event", "fixed", "images", "pace", "per_image", "since")

    def __init__(self, cost: DeviceCost, since: float) -> None:
        self.fixed = cost.forward_seconds
        self.per_image = cost.image_seconds
        self.images = 0
        self.done = 0.0
        """Forwards up to `since`."""
        self.since = since
        self.pace = 0.0
        """Time per forward."""
        self.ends: list[tuple[float, int, int]] = []
        """Heap of the values of `done` at which requests end, with their indexes and images."""
        self.event = 0
        """Number of the group's current event."""

    def catch_up(self, clock: float) -> None:
        """Count the forwards up to a time."""
        if self.pace > 0:
            self.done += (clock - self.since) / self.pace
        self.since = clock

    def next_end(self, max_images: int) -> float:
        """Return when the first request ends; more than `max_images` images take several forwards."""
        forwards = 1 if self.images <= max_images else ceil(self.images / max_images)
        self.pace = (self.fixed * forwards + self.per_image * self.images) / len(self.ends)
        return self.since + max(0.0, self.ends[0][0] - self.done) * self.pace


def finish_times(jobs: Sequence[Job], max_images: int, *, is_continuous: bool) -> list[float]:
    """Return the seconds until each job is finished; `jobs` are in the order of their arrival.

    At most `max_images` images run at a time, and at least one request. With continuous batching, a waiting job
    starts as soon as it fits, and the groups share the device in proportion to their numbers of requests. Without
    it, a batch of one group runs to its end before the next one starts. The cost is O(jobs · groups) for up to
    `MAX_EXACT` jobs, and O(jobs) beyond: then the jobs run one after the other in full batches.
    """
    if len(jobs) > MAX_EXACT:
        return _one_after_another(jobs, max_images)
    return _Worker(jobs, max_images, is_continuous).run()


class _Worker:
    """The state of a worker in the model.

    Its clock counts seconds divided by the number of running requests. By this clock, the progress of a group does
    not depend on the other groups, so an event concerns a single group.
    """

    def __init__(self, jobs: Sequence[Job], max_images: int, is_continuous: bool) -> None:
        self._jobs = jobs
        self._max_images = max_images
        self._is_continuous = is_continuous
        self._groups: dict[Hashable, _Group] = {}
        self._events: list[tuple[float, int, _Group]] = []
        """Heap of the times of the next ends, each with its number; only the last event of a group counts."""
        self._planned = 0
        self._clock = 0.0
        self._count = 0
        self._images = 0
        self._waiting = [index for index, job in enumerate(jobs) if not job.is_running]
        self._start([index for index, job in enumerate(jobs) if job.is_running])

    def run(self) -> list[float]:
        """Return the seconds until each job is finished."""
        finished = [0.0] * len(self._jobs)
        now = 0.0
        events = self._events
        self._admit()
        while events:
            clock, number, group = heappop(events)
            if number != group.event:
                continue
            now += self._count * (clock - self._clock)
            self._clock = clock
            self._end(group, finished, now)
            if self._waiting:
                self._admit()
        return finished

    def _admit(self) -> None:
        """Start the waiting jobs that may start."""
        if not self._waiting or (self._count and not self._is_continuous):
            return
        first = self._jobs[self._waiting[0]].cost.group
        started: list[int] = []
        rest: list[int] = []
        images, maximum = self._images, self._max_images
        for position, index in enumerate(self._waiting):
            cost = self._jobs[index].cost
            fits = images + cost.images <= maximum or not (self._count or started)
            if fits and (self._is_continuous or cost.group == first):
                started.append(index)
                images += cost.images
            elif self._is_continuous:
                rest = self._waiting[position:]  # the worker starts its requests in their order
                break
            else:
                rest.append(index)
        self._waiting = rest
        self._start(started)

    def _start(self, indexes: list[int]) -> None:
        changed: dict[Hashable, _Group] = {}
        for index in indexes:
            cost, left, _ = self._jobs[index]
            group = changed.get(cost.group) or self._groups.get(cost.group)
            if group is None:
                group = self._groups[cost.group] = _Group(cost, self._clock)
            if cost.group not in changed:
                group.catch_up(self._clock)
                changed[cost.group] = group
            heappush(group.ends, (group.done + left, index, cost.images))
            group.images += cost.images
            self._images += cost.images
        self._count += len(indexes)
        for group in changed.values():
            self._plan(group)

    def _end(self, group: _Group, finished: list[float], now: float) -> None:
        """Remove the jobs of a group that end now, at least one."""
        group.catch_up(self._clock)
        limit = max(group.done, group.ends[0][0]) * (1 + _NEGLIGIBLE)
        while group.ends and group.ends[0][0] <= limit:
            _, index, images = heappop(group.ends)
            group.images -= images
            self._images -= images
            self._count -= 1
            finished[index] = now
        if group.ends:
            self._plan(group)
        else:
            del self._groups[self._jobs[index].cost.group]

    def _plan(self, group: _Group) -> None:
        self._planned += 1
        group.event = self._planned
        heappush(self._events, (group.next_end(self._max_images), self._planned, group))


def _one_after_another(jobs: Sequence[Job], max_images: int) -> list[float]:
    now, finished = 0.0, []
    for job in jobs:
        cost = job.cost
        now += job.left * (cost.forward_seconds / max_images + cost.image_seconds) * cost.images
        finished.append(now)
    return finished

"""Prediction of when a worker finishes its requests, from its rules for batches and turns."""

from collections.abc import Hashable, Sequence
from math import ceil, inf
from typing import NamedTuple

MAX_EXACT = 64
"""Number of requests at a worker up to which their shares are followed one by one."""
AGEING = 0.2
"""Device seconds per image that each second of a group's age is worth, as in the worker's engine."""
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
    def forward_alone(self) -> float:
        """Seconds of a forward of the request alone."""
        return self.forward_seconds + self.image_seconds * self.images

    @property
    def alone_seconds(self) -> float:
        """Seconds of the request on an idle worker."""
        return self.forwards * self.forward_alone


class Job(NamedTuple):
    """A request at a worker."""

    cost: DeviceCost
    left: float
    """Remaining forwards."""
    is_running: bool
    age: float = 0.0
    """Seconds since it started."""


def finish_times(jobs: Sequence[Job], max_images: int, *, is_continuous: bool) -> list[float]:
    """Return the seconds until each job is finished; `jobs` are in the order of their arrival.

    At most `max_images` images run at a time, and at least one request. With continuous batching, a waiting job
    starts as soon as it fits, and the group runs whose first job ends soonest, per image and with ageing. Without
    it, a batch of one group runs to its end before the next one starts. The cost is O(jobs · groups) for up to
    `MAX_EXACT` jobs, and O(jobs) beyond: then the jobs run one after the other in full batches.
    """
    if len(jobs) > MAX_EXACT:
        return _one_after_another(jobs, max_images)
    worker = _Worker(jobs, max_images, is_continuous)
    worker.run(inf)
    return worker.finished


def progress(jobs: Sequence[Job], max_images: int, seconds: float) -> list[float]:
    """Return the remaining forwards of running jobs after some seconds; negative for those that are overdue."""
    worker = _Worker(jobs, max_images, is_continuous=True)
    worker.run(seconds)
    if worker.running or not jobs:
        return worker.left
    # The model has ended all of them, the worker has not: each is overdue by the same time.
    overdue = seconds - max(worker.finished)
    return [-overdue / job.cost.forward_alone for job in jobs]


class _Worker:
    """The state of a worker in the model: it runs one group at a time, until the first job of the group ends."""

    def __init__(self, jobs: Sequence[Job], max_images: int, is_continuous: bool) -> None:
        self._jobs = jobs
        self._max_images = max_images
        self._is_continuous = is_continuous
        self._now = 0.0
        self._images = 0
        self._born: dict[int, float] = {}
        self.finished = [0.0] * len(jobs)
        self.left = [job.left for job in jobs]
        self.running: dict[Hashable, list[int]] = {}
        """Indexes of the running jobs by group."""
        self._waiting: list[int] = []
        for index, job in enumerate(jobs):
            if job.is_running:
                self._start(index, -job.age)
            else:
                self._waiting.append(index)

    def run(self, until: float) -> None:
        """Let time pass until all jobs are finished, or so many seconds have passed."""
        self._admit()
        while self.running:
            members, forward, step = self._next()
            seconds = step * forward
            if self._now + seconds > until:
                for index in members:
                    self.left[index] -= (until - self._now) / forward
                return
            self._now += seconds
            self._step(members, step)
            self._admit()

    def _start(self, index: int, born: float) -> None:
        cost = self._jobs[index].cost
        self.running.setdefault(cost.group, []).append(index)
        self._images += cost.images
        self._born[index] = born

    def _admit(self) -> None:
        """Start the waiting jobs that may start."""
        if not self._waiting or (self.running and not self._is_continuous):
            return
        first = self._jobs[self._waiting[0]].cost.group
        rest: list[int] = []
        for position, index in enumerate(self._waiting):
            cost = self._jobs[index].cost
            fits = self._images + cost.images <= self._max_images or not self.running
            if fits and (self._is_continuous or cost.group == first):
                self._start(index, self._now)
            elif self._is_continuous:
                rest = self._waiting[position:]  # the worker starts its requests in their order
                break
            else:
                rest.append(index)
        self._waiting = rest

    def _next(self) -> tuple[list[int], float, float]:
        """Return the jobs of the group that runs, the seconds of a forward, and its forwards until one ends."""
        best: tuple[float, list[int], float, float] | None = None
        left = self.left
        for members in self.running.values():
            cost = self._jobs[members[0]].cost
            images = sum([self._jobs[index].cost.images for index in members])
            forwards = 1 if images <= self._max_images else ceil(images / self._max_images)
            forward = cost.forward_seconds * forwards + cost.image_seconds * images
            step = min([left[index] for index in members])
            if len(self.running) == 1:
                return members, forward, step
            age = self._now - min([self._born[index] for index in members])
            key = step * forward / images - AGEING * age
            if best is None or key < best[0]:
                best = key, members, forward, step
        if best is None:
            raise ValueError("no job is running")
        return best[1:]

    def _step(self, members: list[int], step: float) -> None:
        """Remove the jobs of the group that end after so many forwards."""
        group = self._jobs[members[0]].cost.group
        rest = []
        for index in members:
            self.left[index] -= step
            if self.left[index] > _NEGLIGIBLE * step:
                rest.append(index)
            else:
                self.left[index] = 0.0
                self.finished[index] = self._now
                self._images -= self._jobs[index].cost.images
        if rest:
            self.running[group] = rest
        else:
            del self.running[group]


def _one_after_another(jobs: Sequence[Job], max_images: int) -> list[float]:
    now, finished = 0.0, []
    for job in jobs:
        cost = job.cost
        now += job.left * (cost.forward_seconds / max_images + cost.image_seconds) * cost.images
        finished.append(now)
    return finished

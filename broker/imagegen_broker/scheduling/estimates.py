"""Estimates of when a waiting request starts: pure functions of what workers report."""

from collections.abc import Collection, Set
from typing import NamedTuple, Protocol

from imagegen_protocol.limits import MAX_DURATION_SECONDS, MAX_IMAGES_PER_REQUEST
from imagegen_protocol.messages import Ready, WorkerStats


class Measured(Protocol):
    """The part of a worker's report that estimates need; times in seconds."""

    @property
    def ready(self) -> Ready: ...
    @property
    def stats(self) -> WorkerStats: ...
    @property
    def seconds_per_image(self) -> float | None: ...


class Loaded(Measured, Protocol):
    """The part of a worker's state that the backlog needs."""

    @property
    def depth(self) -> int: ...
    @property
    def assigned_seconds(self) -> float: ...
    @property
    def foreign(self) -> Set[bytes]: ...


class Backlog(NamedTuple):
    """The work that precedes the waiting requests for a model, and the speed at which it is done."""

    requests: int
    """Requests at the workers."""
    seconds: float
    """Their predicted device seconds."""
    slots: int
    """Requests that run at a time."""
    speed: float
    """Device seconds of a typical worker that are done per second; 0 if unknown."""


def backlog_at(
    workers: Collection[Loaded], average_seconds: float, speed: float, answers_per_second: float
) -> Backlog:
    """Return the backlog at the workers of a model; requests of other brokers take `average_seconds`.

    If `speed` is 0, because no worker has reported any, each request counts one second, and the rate of answers to
    requests for all models is the speed.
    """
    requests = sum(worker.depth for worker in workers)
    slots = sum(min(worker.ready.max_batch_size, worker.ready.capacity) for worker in workers)
    if speed > 0:
        own = sum(worker.assigned_seconds for worker in workers)
        foreign = sum(len(worker.foreign) for worker in workers)
        return Backlog(requests, own + foreign * average_seconds, slots, speed)
    return Backlog(requests, float(requests), slots, answers_per_second if workers else 0.0)


def seconds_to_start(position: int, seconds_ahead: float, backlog: Backlog) -> float | None:
    """Return the estimated seconds until the request at a queue position starts, within the protocol's limits.

    `seconds_ahead` are the predicted device seconds of the requests before it in the queue. The request starts
    when no more requests are left than run at a time, less one. None if the speed is unknown.
    """
    if backlog.speed <= 0:
        return None
    requests = position + backlog.requests
    surplus = requests + 1 - backlog.slots
    if surplus <= 0 or not requests:
        return 0.0
    work = seconds_ahead + backlog.seconds
    return min(max(0.0, work * surplus / requests / backlog.speed), MAX_DURATION_SECONDS)


def seconds_per_request(workers: Collection[Measured]) -> float | None:
    """Return the average device time of a request; None while nothing is measured.

    A worker without measurements counts as an average one. A worker of several models counts as if it served only
    this one.
    """
    known = [worker.seconds_per_image for worker in workers if worker.seconds_per_image]
    if not known:
        return None
    typical = sum(known) / len(known)
    images_per_second = sum(1 / (worker.seconds_per_image or typical) for worker in workers)
    return len(workers) * _images_per_request(workers) / images_per_second if images_per_second > 0 else None


def _images_per_request(workers: Collection[Measured]) -> float:
    requests = sum(worker.stats.total_requests for worker in workers)
    images = sum(worker.stats.total_images for worker in workers)
    # A worker may report any totals, but no request has more images than this.
    return min(images / requests, MAX_IMAGES_PER_REQUEST) if requests and images else 1.0

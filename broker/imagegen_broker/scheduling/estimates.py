"""Estimates of when a waiting request starts: pure functions of what workers report."""

from collections.abc import Collection
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
    def depth(self) -> int: ...
    @property
    def seconds_per_image(self) -> float | None: ...


class Throughput(NamedTuple):
    """The rate at which the requests for a model are finished."""

    per_second: float
    ahead: int
    """Requests that must finish before the first waiting one starts; negative if workers are idle."""


def throughput(workers: Collection[Measured], answers_per_second: float) -> Throughput | None:
    """Return the throughput of a model that these workers serve; None while nothing is measured.

    A worker without measurements counts as an average one. If no worker has any, the rate of answers to requests
    for all models is used. A worker of several models counts as if it served only this one.
    """
    known = [worker.seconds_per_image for worker in workers if worker.seconds_per_image]
    if known:
        typical = sum(known) / len(known)
        images_per_second = sum(1 / (worker.seconds_per_image or typical) for worker in workers)
        per_second = images_per_second / _images_per_request(workers)
    else:
        per_second = answers_per_second
    if not workers or per_second <= 0:
        return None
    at_a_time = sum(min(worker.ready.max_batch_size, worker.ready.capacity) for worker in workers)
    return Throughput(per_second, sum(worker.depth for worker in workers) - at_a_time)


def seconds_per_request(workers: Collection[Measured]) -> float | None:
    """Return the average device time of a request; None while nothing is measured."""
    current = throughput(workers, 0.0)
    return None if current is None else len(workers) / current.per_second


def seconds_to_start(position: int, throughput: Throughput) -> float:
    """Return the estimated seconds until the request at a queue position starts, within the protocol's limits."""
    return min(max(0.0, (position + 1 + throughput.ahead) / throughput.per_second), MAX_DURATION_SECONDS)


def _images_per_request(workers: Collection[Measured]) -> float:
    requests = sum(worker.stats.total_requests for worker in workers)
    images = sum(worker.stats.total_images for worker in workers)
    # A worker may report any totals, but no request has more images than this.
    return min(images / requests, MAX_IMAGES_PER_REQUEST) if requests and images else 1.0

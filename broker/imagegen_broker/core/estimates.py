"""When will a request that waits be begun: pure functions over what workers tell of themselves."""

from collections.abc import Collection
from typing import NamedTuple, Protocol

from imagegen_protocol.limits import MAX_DURATION_SECONDS, MAX_IMAGES_PER_REQUEST
from imagegen_protocol.messages import Ready, WorkerStats


class Measured(Protocol):
    """What a worker tells of itself, now or in a copy; times in seconds."""

    @property
    def ready(self) -> Ready: ...
    @property
    def stats(self) -> WorkerStats: ...
    @property
    def depth(self) -> int: ...
    @property
    def seconds_per_image(self) -> float | None: ...


class Pace(NamedTuple):
    """How a model's requests move on: so many a second, once `ahead` more than can run at a time have ended."""

    per_second: float
    ahead: int


def pace(workers: Collection[Measured], answers_per_second: float) -> Pace | None:
    """Return the pace of a model that these workers serve; None while nothing is measured.

    One that has not measured itself counts as an average one; if nobody has, the rate of answers stands in, which
    is that of all models. A worker of several models counts as if it had but this one.
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
    return Pace(per_second, sum(worker.depth for worker in workers) - at_a_time)


def seconds_per_request(workers: Collection[Measured]) -> float | None:
    """Return the device time of a request: n of these workers make n in it; None while nothing is measured."""
    current = pace(workers, 0.0)
    return None if current is None else len(workers) / current.per_second


def seconds_to_start(place: int, pace: Pace) -> float:
    """Return the estimated seconds until a request begins that `place` others precede; a message can hold them."""
    return min(max(0.0, (place + 1 + pace.ahead) / pace.per_second), MAX_DURATION_SECONDS)


def _images_per_request(workers: Collection[Measured]) -> float:
    requests = sum(worker.stats.total_requests for worker in workers)
    images = sum(worker.stats.total_images for worker in workers)
    # A worker may report any totals, but no request asks for more images than that.
    return min(images / requests, MAX_IMAGES_PER_REQUEST) if requests and images else 1.0

"""What is asked of all peers, and the best that any could do in the cost model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.peers.setups.device import Work


@dataclass(frozen=True, slots=True)
class Peer:
    """Something that is set up beside imagegen; `name` is also that of its requirements and its setup."""

    name: str
    title: str
    note: str
    """How it was set up, where that is not all that its guide has."""


OURS = Peer("imagegen", "imagegen", "its defaults; `least-wait` where speeds are unlike")
PEERS = (
    Peer("mosec", "mosec", "its own server and batching; aiohttp asks"),
    Peer("litserve", "LitServe", "`fast_queue`, `restart_workers`, its batching; aiohttp asks"),
    Peer("ray", "Ray Serve", "`@serve.batch`, at most two batches on a replica; asked through a handle, not HTTP"),
    Peer("ipyparallel", "ipyparallel", "load-balanced view, 3 retries; it has no dynamic batching"),
    Peer("dask", "dask.distributed", "local cluster, nannies; it has no dynamic batching"),
    Peer("celery", "Celery + Redis", "late acknowledgement; batches by celery-batches"),
)

GUIDE = Work(
    scenario="burst",
    folder="",
    speeds=(1.0, 1.0, 1.0, 1.0),
    batch_seconds=0.2,
    image_seconds=0.1,
    max_batch_size=8,
    batch_wait=0.05,
    requests=50,
    rounds=3,
    seconds=3.0,
    patience=25.0,
)
"""The guide's load, with the default costs of the simulated backend."""
SCENARIOS = {
    "noop": replace(
        GUIDE,
        scenario="noop",
        speeds=(1.0, 1.0),
        batch_seconds=0.0,
        image_seconds=0.0,
        max_batch_size=1,
        requests=0,
    ),
    "burst": GUIDE,
    "mixed": replace(GUIDE, scenario="mixed", speeds=(1.0, 1.0, 2.5, 2.5), requests=200, rounds=1),
    "kill": replace(GUIDE, scenario="kill", requests=200, rounds=1),
}
QUICK_SPEEDUP = 10
"""So much less time does everything take with `--quick`."""


def quick(work: Work) -> Work:
    """Return the same in a tenth of the time."""
    return replace(
        work,
        batch_seconds=work.batch_seconds / QUICK_SPEEDUP,
        image_seconds=work.image_seconds / QUICK_SPEEDUP,
        batch_wait=work.batch_wait / QUICK_SPEEDUP,
        seconds=work.seconds / QUICK_SPEEDUP,
        rounds=1,
    )


def ideal(work: Work, images: int) -> float:
    """Return the seconds in which the devices could make so many images, if all were split as is best."""
    full = work.batch_seconds + work.max_batch_size * work.image_seconds
    moments = {
        (batches * full + work.batch_seconds + rest * work.image_seconds) / speed
        for speed in set(work.speeds)
        for batches in range(math.ceil(images / work.max_batch_size))
        for rest in range(1, work.max_batch_size + 1)
    }
    # The work ends as some device ends a batch; a nanosecond more, since sums of floats are not exact.
    return next(moment for moment in sorted(moments) if _made(work, work.speeds, moment + 1e-9) >= images)


def _made(work: Work, speeds: Sequence[float], seconds: float) -> int:
    full = work.batch_seconds + work.max_batch_size * work.image_seconds
    made = 0
    for speed in speeds:
        batches, left = divmod(seconds * speed, full)
        rest = max(0, math.floor((left - work.batch_seconds) / work.image_seconds + 1e-9))
        made += int(batches) * work.max_batch_size + rest
    return made

"""Who a worker is, and the READY and HEARTBEAT in which it says so."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from imagegen_protocol.limits import MAX_SECONDS_PER_IMAGE, MIN_SECONDS_PER_IMAGE
from imagegen_protocol.messages import Ready, WorkerHeartbeat, WorkerStats
from imagegen_worker.core.held import Holding
from imagegen_worker.core.link import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What READY tells of the worker, beside what only the loaded model knows."""

    worker_id: bytes
    name: str
    host: str
    gpu_id: int
    gpu_uuid: str | None = None
    backend: str
    capacity: int
    max_batch_size: int
    batching: str
    pid: int
    http: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """How the worker is at the moment of sending."""

    holding: Holding
    stats: WorkerStats
    seconds_per_image: float | None
    step_age_seconds: float | None
    warm: tuple[str, ...]
    draining: bool


def reportable_speed(seconds_per_image: float | None) -> float | None:
    """Return a measured speed within the protocol's range; None if it is unknown or not a positive number.

    A model reports its own speed, and a broker refuses every message with a number out of range.
    """
    if seconds_per_image is None or not 0 < seconds_per_image < inf:
        return None
    return min(max(seconds_per_image, MIN_SECONDS_PER_IMAGE), MAX_SECONDS_PER_IMAGE)


def ready(identity: Identity, models: Iterable[str], device: str, condition: Condition) -> Ready:
    """Return the READY that asks for registration."""
    return Ready(
        worker_id=identity.worker_id,
        name=identity.name,
        host=identity.host,
        gpu_id=identity.gpu_id,
        gpu_uuid=identity.gpu_uuid,
        device=device,
        backend=identity.backend,
        models=list(models),
        capacity=identity.capacity,
        max_batch_size=identity.max_batch_size,
        batching=identity.batching,
        pid=identity.pid,
        http=identity.http,
        version=identity.version,
        queued=list(condition.holding.queued),
        running=list(condition.holding.running),
        finished=list(condition.holding.finished),
        stats=condition.stats,
        seconds_per_image=reportable_speed(condition.seconds_per_image),
        warm=list(condition.warm),
    )


def heartbeat(link: Link, condition: Condition) -> WorkerHeartbeat:
    """Return the HEARTBEAT for a broker that knows us."""
    return WorkerHeartbeat(
        session=link.session,
        beat=link.beat,
        state="draining" if condition.draining else "ready",
        step_age_seconds=condition.step_age_seconds,
        queued=list(condition.holding.queued),
        running=list(condition.holding.running),
        finished=list(condition.holding.finished),
        stats=condition.stats,
        seconds_per_image=reportable_speed(condition.seconds_per_image),
        warm=list(condition.warm),
    )

"""The state that all parts of the worker's core share, and the READY and HEARTBEAT that report it."""

from dataclasses import dataclass, field
from math import inf

from imagegen_protocol.limits import MAX_SECONDS_PER_IMAGE, MIN_SECONDS_PER_IMAGE
from imagegen_protocol.messages import Ready, WorkerHeartbeat
from imagegen_worker.core.cost_reports import CostReports, LoadedLoras
from imagegen_worker.core.counters import WorkerCounters
from imagegen_worker.core.events import Action, LogEvent
from imagegen_worker.core.held_requests import HeldLimits, HeldRequests
from imagegen_worker.core.served_models import ServedModels
from imagegen_worker.core.step_watchdog import StepWatchdog


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerIdentity:
    """The fields of READY that do not change; `http` is the address of the metrics, as HOST:PORT."""

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
class WorkerLimits:
    """Limits in bytes and seconds.

    `input_bytes`: size of the payloads that are received or decoded at the same time; a larger one is received
    alone. `orphan_seconds`: how long queued requests of a silent broker are kept. `drain_seconds`: how long a
    draining worker without unfinished requests waits for acknowledgements after the last answer or FETCH.
    `step_timeout`: age of the running step from which the device counts as hung and the process exits; None or 0
    disables it.
    """

    held: HeldLimits = field(default_factory=HeldLimits)
    input_bytes: int = 256 * 1024 * 1024
    orphan_seconds: float = 60.0
    drain_seconds: float = 30.0
    step_timeout: float | None = 300.0


class WorkerState:
    """The state of one worker, and the actions collected while an event is handled."""

    def __init__(self, identity: WorkerIdentity, limits: WorkerLimits) -> None:
        self.identity = identity
        self.limits = limits
        self.device = ""
        self.draining = False
        self.seconds_per_image: float | None = None
        self.models = ServedModels()
        self.costs = CostReports()
        self.loras = LoadedLoras()
        self.held = HeldRequests(limits.held)
        self.counters = WorkerCounters()
        self.watchdog = StepWatchdog(limits.step_timeout)
        self.actions: list[Action] = []

    def log(self, level: int, text: str, *, broker: int | None = None, **fields: object) -> None:
        """Add a log line to the actions."""
        self.actions.append(LogEvent(level, text, fields, broker))

    def ready_message(self) -> Ready:
        """Return the READY message that registers this worker."""
        identity = self.identity
        return Ready(
            worker_id=identity.worker_id,
            name=identity.name,
            host=identity.host,
            gpu_id=identity.gpu_id,
            gpu_uuid=identity.gpu_uuid,
            device=self.device,
            backend=identity.backend,
            models=list(self.models.names),
            capacity=identity.capacity,
            max_batch_size=identity.max_batch_size,
            batching=identity.batching,
            pid=identity.pid,
            http=identity.http,
            version=identity.version,
            queued=list(self.held.queued),
            running=list(self.held.running),
            finished=list(self.held.finished),
            stats=self.counters.to_stats(),
            seconds_per_image=reportable_speed(self.seconds_per_image),
            warm=list(self.models.loaded),
            costs=self.costs.all(),
            loaded_loras=self.loras.names(),
        )

    def heartbeat_message(self, session: int, beat: int, now: float) -> WorkerHeartbeat:
        """Return the HEARTBEAT for a broker at which the worker is registered."""
        return WorkerHeartbeat(
            session=session,
            beat=beat,
            state="draining" if self.draining else "ready",
            step_age_seconds=self.watchdog.age(now),
            queued=list(self.held.queued),
            running=list(self.held.running),
            finished=list(self.held.finished),
            stats=self.counters.to_stats(),
            seconds_per_image=reportable_speed(self.seconds_per_image),
            warm=list(self.models.loaded),
            loaded_loras=self.loras.names(),
        )


def reportable_speed(seconds_per_image: float | None) -> float | None:
    """Return a measured speed within the protocol's range; None if it is unknown or not a positive number.

    A broker rejects every message with a number out of range.
    """
    if seconds_per_image is None or not 0 < seconds_per_image < inf:
        return None
    return min(max(seconds_per_image, MIN_SECONDS_PER_IMAGE), MAX_SECONDS_PER_IMAGE)

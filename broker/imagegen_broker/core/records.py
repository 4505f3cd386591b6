"""What the broker knows: settings, requests, clients, workers. Plain records; `ledger.py` moves them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.limits import DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
from imagegen_protocol.messages import Error, Message, Ready, WorkerStats

Payload = Sequence[Any]
"""The frames behind a header (bytes, or the socket's own frames), passed on unread; only `len` is asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the broker behaves; times in seconds, sizes in bytes."""

    epoch: bytes
    strategy: str = "round-robin"
    interval: float = DEFAULT_HEARTBEAT_INTERVAL_SECONDS
    liveness: int = DEFAULT_LIVENESS
    max_attempts: int = 3
    max_requests: int = 10_000
    max_bytes: int = 1024 * 1024 * 1024
    max_requests_per_client: int = 5_000
    max_bytes_per_client: int = 256 * 1024 * 1024
    max_unacknowledged_per_client: int = 1024
    """Requests of one client that are at workers, or answered and not acknowledged. At this number, no more of its
    requests are dispatched until it acknowledges."""
    max_clients: int = 20_000
    default_model: str | None = None
    tombstones: int = 20_000
    step_timeout: float | None = 300.0
    """Age of a running step beyond which a worker counts as stuck; None or 0: never."""
    join_seconds: float = 0.02
    """How long an ACCEPTED, which an answer makes needless, and the RELEASE of an acknowledged answer may wait for
    others to go in one message."""
    version: str | None = None
    """Of this program, for the statistics; None: not told."""
    log_requests: bool = False
    """Whether there are notes of requests too, and not of workers alone."""
    traces: bool = False
    """Whether changes of the state of traced requests are told."""

    @property
    def grace(self) -> float:
        """How long a new broker only listens, so that the workers' lists come in first."""
        return 2 * self.interval

    @property
    def silence(self) -> float:
        """Silence after which a peer counts as dead."""
        return self.liveness * self.interval


class State(Enum):
    """Where a request stands; GONE ones are in no table."""

    NEW = "new"
    QUEUED = "queued"
    DISPATCHED = "dispatched"
    DELIVERED = "delivered"
    GONE = "gone"

    __hash__ = object.__hash__
    """Members are singletons; `Enum`'s own hash, of the name, is computed in Python at each look-up."""


TRANSITIONS: dict[State, frozenset[State]] = {
    # An id that a worker already holds goes to that worker straight away.
    State.NEW: frozenset({State.QUEUED, State.DISPATCHED}),
    # A late answer, a deadline or a cancel delivers from the queue.
    State.QUEUED: frozenset({State.DISPATCHED, State.DELIVERED, State.GONE}),
    # The worker died, lost it, or gave it back.
    State.DISPATCHED: frozenset({State.QUEUED, State.DELIVERED, State.GONE}),
    # The answer was lost before the client acknowledged it.
    State.DELIVERED: frozenset({State.QUEUED, State.GONE}),
    State.GONE: frozenset(),
}


@dataclass(slots=True, eq=False)
class Request:
    """One accepted request. `payload` is kept until the client acknowledges, so that it can be made again."""

    id: bytes
    client: "Client"
    model: str | None
    priority: int
    progress: bool
    payload: Payload
    size: int
    arrived: float
    deadline: float | None = None
    preview: bool = False
    traceparent: str | None = None
    images: int = 1
    state: State = State.NEW
    worker: "Worker | None" = None
    """Who makes it (DISPATCHED) or holds its answer (DELIVERED)."""
    attempt: int = 0
    """Times it was given to a worker."""
    deaths: list[str] = field(default_factory=list)
    """The attempts that ended in the death of their worker while it ran them, in words."""
    returns: dict[str, int] = field(default_factory=dict)
    """How often it came back to the queue for other reasons, by reason."""
    returned: bool = False
    """Whether it goes before those of its priority that never left the queue, since it came back from a worker."""
    answer: Error | None = None
    """The terminal error, if the broker itself made it."""
    dispatched: float = 0.0
    delivered: float = 0.0
    resends: int = 0
    ticket: int = 0
    """Its number in the line of the queue in which it waits; later ones have higher numbers."""
    told: tuple[int, float | None] | None = None
    """The place and the seconds to its start that its client was told last."""

    def is_suspect(self, max_attempts: int) -> bool:
        """Say whether one more death of its worker condemns it, which must not be the fault of another."""
        return bool(self.deaths) and len(self.deaths) >= max_attempts - 1


@dataclass(slots=True, eq=False)
class Client:
    """One client, known by its routing id."""

    id: bytes
    session: int
    heard: float
    requests: dict[bytes, Request] = field(default_factory=dict)
    held_bytes: int = 0
    unacknowledged: int = 0
    """How many of its requests are DISPATCHED or DELIVERED."""
    blocked: bool = False
    """Its connection did not take a message, and it has not been heard since."""
    missed: dict[bytes, None] = field(default_factory=dict)
    """Requests whose answer its connection did not take; a subset of `requests`."""
    probe_at: float = 0.0
    """When the next of the missed answers may be sent."""


@dataclass(slots=True)
class Assignment:
    """A request at a worker, and the number of the last heartbeat sent before its WORK or RESEND."""

    request: Request
    beat: int


@dataclass(slots=True, eq=False)
class Worker:
    """One registered worker, known by its routing id."""

    id: bytes
    ready: Ready
    session: int
    heard: float
    beat: int = 0
    draining: bool = False
    reachable: bool = True
    stuck: bool = False
    """Its device hangs: the last step is older than the step timeout."""
    assigned: dict[bytes, Assignment] = field(default_factory=dict)
    """Dispatched, and not seen finished."""
    holding: dict[bytes, Assignment] = field(default_factory=dict)
    """Answered and delivered, but not acknowledged."""
    others: set[bytes] = field(default_factory=set)
    """Listed as queued or running, but not assigned by this broker."""
    listed: frozenset[bytes] = frozenset()
    """All ids of its last holding."""
    running: frozenset[bytes] = frozenset()
    begun: dict[bytes, float] = field(default_factory=dict)
    """When each of those that run was told to first."""
    finished: frozenset[bytes] = frozenset()
    warm: frozenset[str] = frozenset()
    """The models that are loaded by its last word; none: all."""
    capabilities: Mapping[str, ModelCapabilities] = field(default_factory=dict)
    """What its models take, as far as it has told."""
    images: int = 0
    """Of all that is assigned to it."""
    needed: Counter[str | None] = field(default_factory=Counter)
    """Models of what is assigned to it, and how often."""
    unclaimed: set[bytes] = field(default_factory=set)
    """Listed ids that no client has asked this broker for."""
    stats: WorkerStats = field(default_factory=WorkerStats)
    seconds_per_image: float | None = None
    step_age: float | None = None
    dispatches: int = 0
    last_used: int = 0
    """The number of the broker's dispatch that went to it last."""
    version: int = 0
    """Of its place in the order of workers; no two places have the same."""

    @property
    def name(self) -> str:
        """The worker's name, unique in the fleet."""
        return self.ready.name

    @property
    def depth(self) -> int:
        """The exact queue depth: listed, or dispatched and not seen finished."""
        return len(self.assigned) + len(self.others)

    @property
    def load(self) -> int:
        """The queue depth in images; one for each request that this broker has not assigned."""
        return self.images + len(self.others)

    def runs(self, running: frozenset[bytes], now: float) -> None:
        """Learn what runs now; what did not before has begun just now."""
        self.running = running
        self.begun = {request_id: self.begun.get(request_id, now) for request_id in running}

    def times_begun(self) -> list[float]:
        """Return when those began that run, and are not answered yet."""
        return [at for id_, at in self.begun.items() if id_ in self.assigned or id_ in self.others]

    def images_begun(self) -> int:
        """Return how many images those ask for that run, and are not answered yet."""
        mine = [self.assigned[id_].request.images for id_ in self.begun if id_ in self.assigned]
        return sum(mine) + sum(id_ in self.others for id_ in self.begun)

    def is_warm(self, model: str) -> bool:
        """Say whether it has the model loaded, or loads it anyway for what it was given."""
        return not self.warm or model in self.warm or model in self.needed

    @property
    def available(self) -> bool:
        """Whether it takes work at all."""
        return self.reachable and not self.draining and not self.stuck

    @property
    def room(self) -> int:
        """How many images it may be given now; the last request may ask for more."""
        if not self.available:
            return 0
        return max(0, self.ready.capacity - self.load)


@dataclass(slots=True)
class ToClient:
    """Send to a client; a header in bytes is a worker's, passed on as it is."""

    client_id: bytes
    message: Message | bytes
    payload: Payload = ()
    answers: bytes | None = None
    """The request that this is the terminal answer to."""


@dataclass(slots=True)
class ToWorker:
    """Send to a worker."""

    worker_id: bytes
    message: Message
    payload: Payload = ()


Action = ToClient | ToWorker


class Note(NamedTuple):
    """A line for the log; `level` as in `logging`."""

    level: int
    text: str
    fields: dict[str, object]


class Moved(NamedTuple):
    """A traced request has changed its state; `worker` is the one that it leaves, if it was at one."""

    request_id: bytes
    traceparent: str
    old: State
    new: State
    attempt: int
    worker: str | None

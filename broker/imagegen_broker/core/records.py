"""The records of the core: settings, requests, clients and workers."""

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.costs import CostModel
from imagegen_protocol.limits import (
    DEFAULT_FETCH_WINDOW_BYTES,
    DEFAULT_HEARTBEAT_INTERVAL_SECONDS,
    DEFAULT_LIVENESS,
    MAX_PRIORITY,
)
from imagegen_protocol.messages import Error, Ready, Submit, WorkerStats
from imagegen_protocol.transfers import Download, Downloads


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The behaviour of the broker; times in seconds, sizes in bytes."""

    epoch: bytes
    strategy: str = "least-wait"
    interval: float = DEFAULT_HEARTBEAT_INTERVAL_SECONDS
    liveness: int = DEFAULT_LIVENESS
    max_attempts: int = 3
    max_requests: int = 10_000
    max_queue_seconds: float = 0.0
    """Predicted wait beyond which new requests are rejected; 0: no limit."""
    max_bytes: int = 1024 * 1024 * 1024
    max_requests_per_client: int = 5_000
    max_bytes_per_client: int = 256 * 1024 * 1024
    max_unacknowledged_per_client: int = 1024
    """Minimum of the limit on one client's DISPATCHED and DELIVERED requests; see `UnacknowledgedLimits`."""
    max_clients: int = 20_000
    max_workers: int = 8192
    fetch_window_bytes: int = DEFAULT_FETCH_WINDOW_BYTES
    """Maximum number of bytes that one peer may have requested and not confirmed."""
    max_transfer_bytes: int = 1024 * 1024 * 1024
    """Maximum number of bytes that all clients together may have requested; each gets an equal share, but at least
    `MIN_FETCH_WINDOW_BYTES`."""
    secret: bytes = b""
    """Makes the tokens of chunks unpredictable; at most 64 bytes."""
    default_model: str | None = None
    max_recent_ids: int = 20_000
    step_timeout: float | None = 300.0
    """Age of a running step beyond which a worker counts as stuck; None or 0: never."""
    join_seconds: float = 0.02
    """Maximum delay of ACCEPTED, and of RELEASE for an acknowledged answer, to combine several in one message."""
    version: str | None = None
    """Version of the broker, for the statistics."""
    log_requests: bool = False
    """Whether to log events of requests in addition to those of peers."""
    traces: bool = False
    """Whether to return state changes of traced requests."""

    @property
    def grace(self) -> float:
        """Seconds for which a new broker dispatches nothing, so that workers report their requests first."""
        return 2 * self.interval

    @property
    def silence(self) -> float:
        """Seconds without a message after which a peer counts as dead."""
        return self.liveness * self.interval

    @property
    def client_silence(self) -> float:
        """Seconds without a message after which a client counts as dead.

        A client that observes the same silence has two intervals to take its requests to a new connection.
        """
        return self.silence + 2 * self.interval


class State(Enum):
    """The state of a request."""

    NEW = "new"
    RECEIVING = "receiving"
    """Its payload has not completely arrived."""
    QUEUED = "queued"
    DISPATCHED = "dispatched"
    DELIVERED = "delivered"
    GONE = "gone"
    """Removed from all tables."""

    __hash__ = object.__hash__
    """Members are singletons; the hash of `Enum` is computed in Python at each lookup."""


TRANSITIONS: dict[State, frozenset[State]] = {
    # A request that a worker already holds is attached to that worker at once.
    State.NEW: frozenset({State.RECEIVING, State.QUEUED, State.DISPATCHED}),
    State.RECEIVING: frozenset({State.QUEUED, State.DISPATCHED, State.DELIVERED, State.GONE}),
    # A late answer, a deadline or a cancel ends a request in the queue.
    State.QUEUED: frozenset({State.DISPATCHED, State.DELIVERED, State.GONE}),
    # The worker died, lost the request, or returned it. If it was attached to a worker that already held it, its
    # payload may not be here.
    State.DISPATCHED: frozenset({State.RECEIVING, State.QUEUED, State.DELIVERED, State.GONE}),
    # The answer was lost before the client acknowledged it.
    State.DELIVERED: frozenset({State.RECEIVING, State.QUEUED, State.GONE}),
    State.GONE: frozenset(),
}


MIN_FETCH_WINDOW_BYTES = 64 * 1024
_MIN_UNCONFIRMED = 4096
_MIN_AVERAGE_BYTES = 1024
"""Average size of unconfirmed messages below which their number counts instead; honest peers stay above it."""
FIRST_CHUNK_BYTES = 8 * 1024
"""Size of a worker's first chunks. Even a slow link transfers one within the liveness time."""


@dataclass(slots=True)
class SendWindow:
    """Unconfirmed chunks and previews that were sent to one peer."""

    size: int = 0
    """Their size in bytes."""
    _sizes: OrderedDict[bytes, int] = field(default_factory=OrderedDict)
    """By token, in the order of sending."""

    def add(self, token: bytes, size: int) -> None:
        """Add a message that is sent now."""
        self._sizes[token] = size
        self.size += size

    def confirm(self, token: bytes) -> None:
        """Remove all messages up to the one with this token; an unknown token has no effect."""
        if token not in self._sizes:
            return
        while True:
            confirmed, size = self._sizes.popitem(last=False)
            self.size -= size
            if confirmed == token:
                return

    def remove(self, token: bytes) -> None:
        """Remove a message that could not be sent."""
        self.size -= self._sizes.pop(token, 0)

    def is_crowded(self, maximum: int) -> bool:
        """Return whether there are too many messages for a window of `maximum` bytes: they are very small."""
        return len(self._sizes) >= max(_MIN_UNCONFIRMED, maximum // _MIN_AVERAGE_BYTES)

    def room(self, maximum: int) -> int:
        """Return how many bytes may still be sent in a window of `maximum` bytes."""
        return 0 if self.is_crowded(maximum) else max(0, maximum - self.size)


@dataclass(slots=True)
class Relay:
    """The transfer of an answer from the worker that holds it to the client."""

    payload_id: bytes
    total: int
    """Size of the payload in bytes."""
    position: int = 0
    """Offset of the next chunk."""
    end: int = 0
    """Offset up to which the client has requested bytes."""
    asked_at: float = 0.0
    """Time of the client's last FETCH."""
    waiting_since: float = 0.0
    """Time of the last chunk, or of the FETCH that the client sent while no chunk was outstanding."""
    repeats: int = 0
    """Number of repeated FETCHes of the client since the last chunk."""


@dataclass(slots=True, eq=False)
class Request:
    """One accepted request. The payload is kept until the client acknowledges: it may be dispatched again."""

    submit: Submit
    """The decoded header of SUBMIT."""
    client: "Client"
    model: str | None
    """The requested model, or else the default model; None while no default is known."""
    payload: Sequence[Any]
    """The frames after the header; empty until a payload that is fetched is complete."""
    arrived_at: float
    deadline: float | None = None
    id: bytes = field(init=False)
    priority: int = field(init=False)
    """The priority; higher goes first."""
    images: int = field(init=False)
    """The number of images to generate."""
    size: int = field(init=False)
    """Bytes of the payload."""
    state: State = State.NEW
    worker: "Worker | None" = None
    """The worker that processes the request (DISPATCHED) or holds its answer (DELIVERED)."""
    attempt: int = 0
    """Number of times that the request was dispatched."""
    deaths: list[str] = field(default_factory=list)
    """Descriptions of the attempts during which the worker died or hung."""
    requeues: dict[str, int] = field(default_factory=dict)
    """Number of requeues by reason, except those in `deaths`."""
    requeued: bool = False
    """Whether it came back from a worker, and therefore precedes requests that were never dispatched."""
    answer: Error | None = None
    """The terminal error, if the broker created it."""
    download: Download | None = None
    """The partly received payload of a RECEIVING request."""
    relay: Relay | None = None
    """The transfer of the answer's payload, if the client fetches it in chunks."""
    dispatched_at: float = 0.0
    answered_at: float = 0.0
    """Time at which the answer was last sent or requested from the worker."""
    resends: int = 0
    deadline_entry: int = 0
    """Number of its current entry among the deadlines; entries with another number are outdated."""
    previous_client: "Client | None" = None
    """The client that owned the request before it was transferred."""
    seconds: float = 0.0
    """Predicted device seconds on a typical worker, as of its last entry into the queue."""
    queue_index: int = 0
    """Position in its client queue, relative to the other requests there."""
    reported_position: tuple[int, float | None] | None = None
    """The queue position and the seconds to the start that were last reported to the client."""

    def __post_init__(self) -> None:
        # Copied, because an attribute takes a fraction of the time of a property.
        self.id = self.submit.request_id
        self.priority = self.submit.priority
        self.images = self.submit.images
        self.size = sum(self.submit.frame_bytes or map(len, self.payload))

    def start_relay(self, relay: Relay) -> None:
        """Start the transfer of the answer's payload to the client, or continue that of the same payload."""
        if self.relay is None or self.relay.payload_id != relay.payload_id:
            self.end_relay()
            self.relay = relay

    def end_relay(self) -> None:
        """End the transfer, and stop counting the bytes that were requested but not sent."""
        if self.relay is not None:
            self.client.asked_bytes -= self.relay.end - self.relay.position
            self.relay.end = self.relay.position

    @property
    def is_complete(self) -> bool:
        """Whether the payload has arrived."""
        return bool(self.payload)

    @property
    def progress(self) -> bool:
        """Whether the client requested progress; previews imply it."""
        return self.submit.progress or self.submit.preview

    def is_suspect(self, max_attempts: int) -> bool:
        """Return whether one more death of a worker would end the request; it must then run alone."""
        return bool(self.deaths) and len(self.deaths) >= max_attempts - 1


@dataclass(slots=True)
class Principal:
    """All clients with the same key; they share its limits. A client without a key has a principal of its own."""

    clients: int = 0
    requests: int = 0
    held_bytes: int = 0


@dataclass(slots=True, eq=False)
class Client:
    """The session of one client, known by its routing id."""

    id: bytes
    session: int
    last_received: float
    key: bytes = b""
    """Its public key; empty if keys are not used."""
    owner: bytes = field(init=False)
    """Whose turns and limits the client shares: those of its key, or its own without keys."""
    max_priority: int = MAX_PRIORITY
    """Maximum priority of its requests."""
    principal: Principal = field(default_factory=Principal)
    requests: dict[bytes, Request] = field(default_factory=dict)
    held_bytes: int = 0
    unacknowledged: int = 0
    """Number of its requests that are DISPATCHED or DELIVERED."""
    blocked: bool = False
    """Whether its connection did not accept a message, and no message of it has been received since."""
    missed: dict[bytes, None] = field(default_factory=dict)
    """Requests whose answers its connection did not accept; a subset of `requests`."""
    retry_at: float = 0.0
    """Time from which missed answers may be sent again."""
    is_reachable: bool = False
    """Whether its connection has accepted a message since it was new or blocked; nothing is dispatched for it
    before."""
    receive_maximum: int | None = None
    """Maximum number of its unacknowledged requests, as requested by the client; None for the broker's."""
    window: SendWindow = field(default_factory=SendWindow)
    asked_bytes: int = 0
    """Bytes of answers that it has requested and that have not been sent yet."""
    downloads: Downloads = field(default_factory=Downloads)
    """The payloads of its RECEIVING requests."""

    def __post_init__(self) -> None:
        self.owner = self.key or self.id

    def add(self, request: Request) -> None:
        """Make the client the owner of a request."""
        request.client = self
        self.requests[request.id] = request
        self.held_bytes += request.size
        self.principal.requests += 1
        self.principal.held_bytes += request.size

    def remove(self, request: Request) -> None:
        """Remove a request that the client owns."""
        del self.requests[request.id]
        self.missed.pop(request.id, None)
        self.held_bytes -= request.size
        self.principal.requests -= 1
        self.principal.held_bytes -= request.size


@dataclass(slots=True)
class Assignment:
    """A request at a worker, and the number of the last heartbeat sent before its WORK or RESEND."""

    request: Request
    beat: int
    resends: int = 0
    """Number of RESENDs because the worker lists the request as finished."""
    reported_beat: int = 0
    reports: int = 0
    """Number of PROGRESS messages since the broker's heartbeat `reported_beat`."""

    def count_report(self, beat: int) -> int:
        """Count a PROGRESS message; return the number of them since the last heartbeat, which has this number."""
        self.reports = self.reports + 1 if beat == self.reported_beat else 1
        self.reported_beat = beat
        return self.reports


@dataclass(slots=True, eq=False)
class Worker:
    """The session of one registered worker, known by its routing id."""

    id: bytes
    ready: Ready
    session: int
    last_received: float
    beat: int = 0
    """Number of the last heartbeat sent to it."""
    heartbeat_number: int = 0
    """Number of its last heartbeat that has arrived."""
    draining: bool = False
    reachable: bool = True
    stuck: bool = False
    """Whether its device hangs: the last step is older than the step timeout."""
    assigned: dict[bytes, Assignment] = field(default_factory=dict)
    """DISPATCHED requests."""
    answers: dict[bytes, Assignment] = field(default_factory=dict)
    """DELIVERED requests whose answer it holds until they are acknowledged."""
    foreign: set[bytes] = field(default_factory=set)
    """Ids that it lists as queued or running, but that this broker has not assigned to it."""
    listed: frozenset[bytes] = frozenset()
    """All ids of its last list of held requests."""
    running: frozenset[bytes] = frozenset()
    started: dict[bytes, float] = field(default_factory=dict)
    """Time at which each running request was first reported as running."""
    finished: frozenset[bytes] = frozenset()
    warm: frozenset[str] = frozenset()
    """Models that it reports as loaded; empty if all of its models are loaded."""
    capabilities: Mapping[str, ModelCapabilities] = field(default_factory=dict)
    """Reported capabilities of its models, by name."""
    assigned_images: int = 0
    assigned_seconds: float = 0.0
    """Predicted device seconds of the assigned requests on a typical worker."""
    assigned_models: Counter[str | None] = field(default_factory=Counter)
    """Number of assigned requests by model."""
    orphans: set[bytes] = field(default_factory=set)
    """Listed ids that no client has submitted to this broker."""
    stats: WorkerStats = field(default_factory=WorkerStats)
    seconds_per_image: float | None = None
    costs: dict[str, CostModel] = field(default_factory=dict)
    """Reported cost models of its models, by name."""
    loaded_loras: frozenset[str] = frozenset()
    """Names of the LoRAs that it reports as loaded."""
    step_age: float | None = None
    """Seconds since the last denoising step; None when idle."""
    window: SendWindow = field(default_factory=SendWindow)
    chunk_bytes: int = FIRST_CHUNK_BYTES
    """Maximum size of the chunks that clients may ask it for; it follows the speed of the worker's link."""
    dispatches: int = 0
    last_used: int = 0
    """Number of the last dispatch to it, counted over all workers."""

    @property
    def name(self) -> str:
        """The worker's name, unique in the fleet."""
        return self.ready.name

    @property
    def depth(self) -> int:
        """The queue depth: requests that are assigned to the worker or listed by it, except finished ones."""
        return len(self.assigned) + len(self.foreign)

    @property
    def load(self) -> int:
        """The queue depth in images; a foreign request counts as one."""
        return self.assigned_images + len(self.foreign)

    @property
    def is_available(self) -> bool:
        """Whether the worker accepts work: it is neither draining, stuck nor unreachable."""
        return self.reachable and not self.draining and not self.stuck

    @property
    def room(self) -> int:
        """The number of images that may be dispatched to it now; the last request may exceed it."""
        if not self.is_available:
            return 0
        return max(0, self.ready.capacity - self.load)

    def assign(self, request: Request) -> None:
        """Add a request that is dispatched to the worker."""
        self.assigned[request.id] = Assignment(request, self.beat)
        self.foreign.discard(request.id)
        self.assigned_images += request.images
        self.assigned_seconds += request.seconds
        self.assigned_models[request.model] += 1

    def unassign(self, request: Request) -> None:
        """Remove a request that was assigned to the worker."""
        del self.assigned[request.id]
        self.assigned_images -= request.images
        self.assigned_seconds = max(0.0, self.assigned_seconds - request.seconds) if self.assigned else 0.0
        self.assigned_models[request.model] -= 1
        if not self.assigned_models[request.model]:
            del self.assigned_models[request.model]

    def set_running(self, running: frozenset[bytes], now: float) -> None:
        """Store the running requests; `now` is the start time of newly running requests."""
        self.running = running
        self.started = {request_id: self.started.get(request_id, now) for request_id in running}

    def start_times(self) -> list[float]:
        """Return the start times of the running requests that are not answered yet."""
        return [at for id_, at in self.started.items() if id_ in self.assigned or id_ in self.foreign]

    def images_running(self) -> int:
        """Return the number of images of the running requests that are not answered yet."""
        own = [self.assigned[id_].request.images for id_ in self.started if id_ in self.assigned]
        return sum(own) + sum(id_ in self.foreign for id_ in self.started)

    def serves(self, model: str | None) -> bool:
        """Return whether the worker can process a request for a model; None stands for its default model."""
        return model is None or model in self.ready.models

    def is_warm(self, model: str) -> bool:
        """Return whether a model is loaded, or will be for a request that is already assigned."""
        return not self.warm or model in self.warm or model in self.assigned_models

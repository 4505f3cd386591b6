"""The requests that a worker holds: queued, running, or finished with an answer that is not acknowledged yet."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import inf

from imagegen_protocol.costs import NO_SHAPE, RequestShape
from imagegen_protocol.limits import DEFAULT_INLINE_BYTES, MAX_IDS_PER_MESSAGE
from imagegen_protocol.messages import Error, Result
from imagegen_protocol.transfers import Download
from imagegen_worker.core.model import ResolvedRequest

MAX_AGE_FACTOR = 6
"""Maximum age of an answer, however often it is requested, in multiples of `HeldLimits.seconds`."""
ANSWER_OVERHEAD_BYTES = 1024
"""Bytes counted for an answer in addition to its images: the header, ids and tables."""


@dataclass(slots=True)
class HeldRequest:
    """A request and its state. Times are monotonic seconds."""

    id: bytes
    number: int
    broker: int
    """Index of the broker that gets the answer, and that the payload is fetched from."""
    attempt: int
    progress: bool
    arrived: float
    """When the request arrived, with all of its payload."""
    deadline: float | None
    announced_images: int | None = None
    """Number of images that the broker's header states."""
    shape: RequestShape = NO_SHAPE
    """Shape that the broker's header states."""
    preview: bool = False
    inline_bytes: int = DEFAULT_INLINE_BYTES
    """Maximum size of the images that are sent with the answer; larger ones are fetched."""
    model: str = ""
    download: Download | None = None
    """The payload while it is fetched."""
    claimed_by: bytes | None = None
    """Epoch of the broker that sent WORK or RESEND last; one that is restarted has another epoch."""
    source: bytes | None = None
    """Epoch of the broker that sent the request last, and therefore has its payload."""
    unparsed: tuple[bytes, ...] | None = None
    """The payload, kept until the model is loaded: parsing needs the model's capabilities."""
    exclusive: bool = False
    """Whether the request must run alone."""
    request: ResolvedRequest | None = None
    """The resolved request; None until its input images are decoded."""
    answer: Result | Error | None = None
    images: tuple[bytes, ...] = ()
    payload_id: bytes = b""
    """Id under which the images of the answer can be fetched."""
    finished_at: float = 0.0
    """When the answer was created."""
    wanted_at: float = 0.0
    """When the answer was created, or a client last requested it or further bytes of it."""
    fetched_to: int = 0
    """End of the images' bytes that were fetched so far."""
    step: tuple[int, int] = (0, 0)
    """The last reported progress: completed steps and total steps."""
    next_preview_at: float = 0.0
    """When the next preview may be sent."""

    @property
    def image_count(self) -> int:
        """Number of requested images; 1 until the request is resolved."""
        return 1 if self.request is None else len(self.request.seeds)

    @property
    def image_bytes(self) -> int:
        """Bytes of the generated images."""
        return sum(map(len, self.images))

    @property
    def size(self) -> int:
        """Bytes that the answer counts towards the limit."""
        return ANSWER_OVERHEAD_BYTES + self.image_bytes


@dataclass(frozen=True, slots=True)
class HeldLimits:
    """Limits of unacknowledged answers; beyond them, those not requested for longest are dropped first."""

    bytes: int = 256 * 1024 * 1024
    seconds: float = 600.0
    """Maximum time since an answer was created or requested; its age is at most `MAX_AGE_FACTOR` times that."""
    count: int = MAX_IDS_PER_MESSAGE


class HeldRequests:
    """Table of held requests. Each is in exactly one of `queued`, `running` and `finished`, which are in order."""

    def __init__(self, limits: HeldLimits) -> None:
        self._limits = replace(limits, count=min(limits.count, MAX_IDS_PER_MESSAGE))
        self._ids: dict[int, bytes] = {}
        self.queued: dict[bytes, HeldRequest] = {}
        self.running: dict[bytes, HeldRequest] = {}
        self.finished: dict[bytes, HeldRequest] = {}
        """Answers by request id, those that were not requested for longest first."""
        self._by_age: dict[bytes, HeldRequest] = {}
        """The same answers, the oldest first."""
        self.finished_bytes = 0
        self.last_activity = -inf
        """When an answer was last created, or further bytes of one fetched; minus infinity before the first."""

    def get(self, request_id: bytes) -> HeldRequest | None:
        """Return the request with this id, in any state."""
        return self.queued.get(request_id) or self.running.get(request_id) or self.finished.get(request_id)

    @property
    def numbers(self) -> Collection[int]:
        """The job numbers of queued and running requests."""
        return self._ids.keys()

    def queued_images(self) -> int:
        """Return the number of images of the queued requests."""
        return sum(held.image_count for held in self.queued.values())

    def running_images(self) -> int:
        """Return the number of images of the running requests."""
        return sum(held.image_count for held in self.running.values())

    def unfinished(self) -> Iterator[HeldRequest]:
        """Yield the queued requests, then the running ones."""
        yield from self.queued.values()
        yield from self.running.values()

    def by_number(self, number: int) -> HeldRequest | None:
        """Return the unfinished request with this job number, if any."""
        request_id = self._ids.get(number)
        return self.get(request_id) if request_id is not None else None

    def add(self, held: HeldRequest) -> None:
        """Add a new request as queued."""
        self._ids[held.number] = held.id
        self.queued[held.id] = held

    def start(self, held: HeldRequest) -> None:
        """Mark an unfinished request as running."""
        self.queued.pop(held.id, None)
        self.running[held.id] = held

    def finish(
        self, held: HeldRequest, answer: Result | Error, images: tuple[bytes, ...], now: float
    ) -> list[HeldRequest]:
        """Store the answer until it is acknowledged; drop and return answers beyond the limits, never this one."""
        self.remove(held)
        held.answer, held.images = answer, images
        self.last_activity = held.finished_at = held.wanted_at = now
        self.finished[held.id] = self._by_age[held.id] = held
        self.finished_bytes += held.size
        dropped = []
        while len(self.finished) > 1 and (
            self.finished_bytes > self._limits.bytes or len(self.finished) > self._limits.count
        ):
            dropped.append(next(iter(self.finished.values())))
            self.remove(dropped[-1])
        return dropped

    def touch(self, held: HeldRequest, now: float) -> None:
        """Record that a client requests an answer: it becomes the last to be dropped."""
        held.wanted_at = now
        self.finished[held.id] = self.finished.pop(held.id)

    def fetch(self, held: HeldRequest, end: int, now: float) -> None:
        """Record that a client fetches an answer up to the byte `end`.

        Further bytes extend the answer's life and a drain; bytes that were fetched before do not.
        """
        if end > held.fetched_to:
            held.fetched_to = end
            self.touch(held, now)
            self.last_activity = now

    def remove(self, held: HeldRequest) -> None:
        """Remove a request in any state."""
        self._ids.pop(held.number, None)
        self.queued.pop(held.id, None)
        self.running.pop(held.id, None)
        if self.finished.pop(held.id, None) is not None:
            del self._by_age[held.id]
            self.finished_bytes -= held.size

    def next_expiry(self) -> float | None:
        """Return when the next answer expires; None without answers."""
        following = self._next_to_expire()
        return None if following is None else self._expires_at(following)

    def expire(self, now: float) -> list[HeldRequest]:
        """Drop and return the answers that have expired."""
        dropped: list[HeldRequest] = []
        while (held := self._next_to_expire()) is not None and now >= self._expires_at(held):
            dropped.append(held)
            self.remove(held)
        return dropped

    def _next_to_expire(self) -> HeldRequest | None:
        """Return the answer that expires next: the one that was not requested for longest, or the oldest."""
        if not self.finished:
            return None
        return min(next(iter(self.finished.values())), next(iter(self._by_age.values())), key=self._expires_at)

    def _expires_at(self, held: HeldRequest) -> float:
        seconds = self._limits.seconds
        return min(held.wanted_at + seconds, held.finished_at + MAX_AGE_FACTOR * seconds)

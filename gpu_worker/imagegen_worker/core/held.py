"""The requests a worker holds: waiting, running, and answered but not yet released."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE
from imagegen_protocol.messages import Error, Result, Work
from imagegen_worker.core.model import ResolvedRequest

ANSWER_OVERHEAD_BYTES = 1024
"""What an answer counts beside its images: header, ids and tables."""


@dataclass(slots=True)
class Held:
    """One request. `owner` is the link of the broker that is owed the answer; times are monotonic seconds."""

    id: bytes
    number: int
    owner: int
    attempt: int
    progress: bool
    arrived: float
    deadline: float | None
    preview: bool = False
    model: str = ""
    unread: tuple[Work, tuple[bytes, ...]] | None = None
    """What came, while its model is not known: only then can it be read."""
    alone: bool = False
    """It is to run alone, once its images are decoded."""
    request: ResolvedRequest | None = None
    """None until its images are decoded."""
    answer: Result | Error | None = None
    images: tuple[bytes, ...] = ()
    answered_at: float = 0.0
    step: tuple[int, int] = (0, 0)
    """How far it is: the last progress that was told."""

    @property
    def image_count(self) -> int:
        """Images that it asks for; 1 while that is not known."""
        return 1 if self.request is None else len(self.request.seeds)

    @property
    def size(self) -> int:
        """Bytes that the answer counts."""
        return ANSWER_OVERHEAD_BYTES + sum(len(image) for image in self.images)


@dataclass(frozen=True, slots=True)
class HeldLimits:
    """Bounds of the answers that are kept until RELEASE; the oldest go first, the newest always stays."""

    bytes: int = 256 * 1024 * 1024
    seconds: float = 600.0
    count: int = MAX_IDS_PER_MESSAGE


class Holding:
    """The table of requests held; each is in exactly one of `queued`, `running` and `finished`."""

    def __init__(self, limits: HeldLimits) -> None:
        self._limits = replace(limits, count=min(limits.count, MAX_IDS_PER_MESSAGE))
        self._ids: dict[int, bytes] = {}
        self.queued: dict[bytes, Held] = {}
        self.running: dict[bytes, Held] = {}
        self.finished: dict[bytes, Held] = {}
        self.finished_bytes = 0

    def get(self, request_id: bytes) -> Held | None:
        """Return what is held under an id."""
        return self.queued.get(request_id) or self.running.get(request_id) or self.finished.get(request_id)

    @property
    def numbers(self) -> Collection[int]:
        """The job numbers of what is queued or runs."""
        return self._ids.keys()

    def queued_images(self) -> int:
        """Return the images of the queued requests."""
        return sum(held.image_count for held in self.queued.values())

    def running_images(self) -> int:
        """Return the images of the running requests."""
        return sum(held.image_count for held in self.running.values())

    def unfinished(self) -> Iterator[Held]:
        """Yield what is queued, then what runs."""
        yield from self.queued.values()
        yield from self.running.values()

    def by_number(self, number: int) -> Held | None:
        """Return the unfinished request with a job number; None if it is gone or answered."""
        request_id = self._ids.get(number)
        return self.get(request_id) if request_id is not None else None

    def add(self, held: Held) -> None:
        """Queue a new request."""
        self._ids[held.number] = held.id
        self.queued[held.id] = held

    def start(self, held: Held) -> None:
        """Move a queued request to the running; one that runs already stays there."""
        self.queued.pop(held.id, None)
        self.running[held.id] = held

    def finish(self, held: Held, answer: Result | Error, images: tuple[bytes, ...], now: float) -> list[Held]:
        """Keep an answer until its release; return the older answers that had to go for it."""
        self.remove(held)
        held.answer, held.images, held.answered_at = answer, images, now
        self.finished[held.id] = held
        self.finished_bytes += held.size
        dropped = []
        while len(self.finished) > 1 and (
            self.finished_bytes > self._limits.bytes or len(self.finished) > self._limits.count
        ):
            dropped.append(next(iter(self.finished.values())))
            self.remove(dropped[-1])
        return dropped

    def remove(self, held: Held) -> None:
        """Forget a request, whatever its state."""
        self._ids.pop(held.number, None)
        self.queued.pop(held.id, None)
        self.running.pop(held.id, None)
        if self.finished.pop(held.id, None) is not None:
            self.finished_bytes -= held.size

    def expiry(self) -> float | None:
        """Return when the oldest answer becomes too old."""
        oldest = next(iter(self.finished.values()), None)
        return None if oldest is None else oldest.answered_at + self._limits.seconds

    def expire(self, now: float) -> list[Held]:
        """Drop and return the answers that are too old."""
        dropped: list[Held] = []
        while (at := self.expiry()) is not None and now >= at:
            dropped.append(next(iter(self.finished.values())))
            self.remove(dropped[-1])
        return dropped

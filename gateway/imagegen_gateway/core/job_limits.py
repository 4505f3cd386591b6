"""Limits on unfinished jobs: their number, the bytes of their input images, and the memory that these may use."""

from collections import Counter, OrderedDict, deque
from dataclasses import dataclass, field
from typing import Literal

from imagegen_gateway.core.byte_budget import ByteBudget


@dataclass(slots=True, kw_only=True)
class JobQuota:
    """Number of unfinished jobs and bytes of their input images. Only keys with jobs are stored."""

    max_jobs: int
    max_jobs_per_key: int
    max_bytes_per_key: int
    jobs: int = 0
    """Unfinished jobs of all keys."""
    _jobs: Counter[str] = field(default_factory=Counter)
    _bytes: Counter[str] = field(default_factory=Counter)

    def find_excess(self, key_id: str, size: int) -> Literal["jobs", "key_jobs", "key_bytes"] | None:
        """Return the limit that a new job with input images of `size` bytes would exceed, or None."""
        if self.jobs >= self.max_jobs:
            return "jobs"
        if self._jobs[key_id] >= self.max_jobs_per_key:
            return "key_jobs"
        if self._bytes[key_id] + size > self.max_bytes_per_key:
            return "key_bytes"
        return None

    def add(self, key_id: str, size: int) -> None:
        """Count a job, even if it exceeds the limits."""
        self.jobs += 1
        self._jobs[key_id] += 1
        self._bytes[key_id] += size

    def remove(self, key_id: str, size: int) -> None:
        """Stop counting a job."""
        self.jobs -= 1
        self._jobs[key_id] -= 1
        self._bytes[key_id] -= size
        if not self._jobs[key_id]:
            del self._jobs[key_id], self._bytes[key_id]


class InputQueue:
    """Jobs that wait for memory for their input images. Keys take turns; the jobs of one key keep their order."""

    def __init__(self, *, per_key: int, total: int) -> None:
        """Create an empty queue; the maximums are in bytes."""
        self._budget = ByteBudget(per_key, total)
        self._waiting: OrderedDict[str, deque[tuple[str, int]]] = OrderedDict()
        self._held: dict[str, tuple[str, int]] = {}

    def enter(self, job_id: str, key_id: str, size: int) -> None:
        """Add a job. One that needs more than the maximum of a key waits until its key holds nothing."""
        self._waiting.setdefault(key_id, deque()).append((job_id, min(size, self._budget.per_key)))

    def admit(self) -> list[str]:
        """Give memory to the next jobs, as far as it suffices, and return them."""
        admitted: list[str] = []
        blocked: set[str] = set()
        while key_id := next((key for key in self._waiting if key not in blocked), None):
            job_id, size = self._waiting[key_id][0]
            match self._budget.take(key_id, size):
                case "total":
                    break  # smaller jobs do not overtake this one, so that it is admitted in the end
                case "key":
                    blocked.add(key_id)
                case None:
                    admitted.append(job_id)
                    self._held[job_id] = (key_id, size)
                    self._remove_first(key_id)
        return admitted

    def leave(self, job_id: str, key_id: str) -> None:
        """Remove a job, which waits or holds memory."""
        if (held := self._held.pop(job_id, None)) is not None:
            self._budget.give_back(*held)
            return
        waiting = [entry for entry in self._waiting.pop(key_id, ()) if entry[0] != job_id]
        if waiting:
            self._waiting[key_id] = deque(waiting)

    def _remove_first(self, key_id: str) -> None:
        """Remove the first job of a key, whose next turn is after all other keys."""
        waiting = self._waiting[key_id]
        waiting.popleft()
        self._waiting.move_to_end(key_id)
        if not waiting:
            del self._waiting[key_id]

"""Admits jobs from the core to the engine; an exclusive job waits until the engine is empty."""

from collections.abc import Collection

from imagegen_worker.core.events import Job


class ExclusiveGate:
    """Admits jobs in order of arrival, and none while an exclusive job is unfinished."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Job, bool]] = {}
        self._exclusive: int | None = None

    def __contains__(self, number: int) -> bool:
        return number in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job, *, exclusive: bool) -> None:
        """Queue a job."""
        self._waiting[job.number] = (job, exclusive)

    def discard(self, number: int) -> bool:
        """Remove a waiting job; return whether it was waiting, that is, not yet sent to the engine."""
        return self._waiting.pop(number, None) is not None

    def admit(self, unfinished: Collection[int]) -> list[Job]:
        """Remove and return the jobs that may run now; `unfinished`: numbers of all waiting and running jobs."""
        if self._exclusive not in unfinished:
            self._exclusive = None
        admitted: list[Job] = []
        while self._waiting and self._exclusive is None:
            number, (job, exclusive) = next(iter(self._waiting.items()))
            if exclusive:
                if len(unfinished) > len(self._waiting):
                    break
                self._exclusive = number
            del self._waiting[number]
            admitted.append(job)
        return admitted

"""Admits jobs from the core to the engine; an exclusive job waits until the engine is empty."""

from collections.abc import Collection

from imagegen_worker.core.events import Job


class ExclusiveGate:
    """Admits jobs in order of arrival, and none while an exclusive job is unfinished."""

    def __init__(self) -> None:
        self._waiting: dict[int, tuple[Job, bool]] = {}
        self._alone: int | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, job: Job, *, alone: bool) -> None:
        """Have a job wait for its turn."""
        self._waiting[job.number] = (job, alone)

    def discard(self, number: int) -> bool:
        """Forget a job; return whether it waited here, so that the engine has never heard of it."""
        return self._waiting.pop(number, None) is not None

    def open(self, unfinished: Collection[int]) -> list[Job]:
        """Return the jobs that go to the engine now; `unfinished`: the numbers of all that are here or there."""
        if self._alone not in unfinished:
            self._alone = None
        through: list[Job] = []
        while self._waiting and self._alone is None:
            number, (job, alone) = next(iter(self._waiting.items()))
            if alone:
                if len(unfinished) > len(self._waiting):
                    break
                self._alone = number
            del self._waiting[number]
            through.append(job)
        return through

"""Which jobs share a batch, and when it goes."""

from collections import deque
from collections.abc import Callable, Hashable

from imagegen_worker.core.events import Job


class BatchFormer:
    """Gathers alike jobs, up to `max_images` images a batch, for at most `max_wait` seconds from their arrival.

    A full batch goes at once; otherwise it goes when its oldest job has waited long enough. Of several that may
    go, the one with the oldest job goes first, and that job goes with it, so nothing starves; a job that does not
    fit in any more lets smaller ones go before it. A job of more images than `max_images` goes
    alone. `max_images` 1 with `max_wait` 0 is no batching.
    """

    def __init__(self, max_images: int, max_wait: float) -> None:
        self._max_images = max_images
        self._max_wait = max_wait
        self._groups: dict[Hashable, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def add(self, job: Job) -> None:
        """Let a job wait for company. Jobs come about in the order of arrival: images take time."""
        self._groups.setdefault(job.request.batch_key, deque()).append(job)

    def remove(self, number: int) -> bool:
        """Forget a job; return whether it was waiting here."""
        for key, group in self._groups.items():
            for job in group:
                if job.number == number:
                    group.remove(job)
                    if not group:
                        del self._groups[key]
                    return True
        return False

    def models(self) -> list[str]:
        """Return the names of the models for which jobs wait, that of the oldest job first."""
        oldest = sorted((group[0] for group in self._groups.values()), key=lambda job: job.number)
        return list(dict.fromkeys(job.request.model for job in oldest))

    def discard(self, model: str) -> None:
        """Forget all jobs for a model."""
        self._groups = {key: group for key, group in self._groups.items() if group[0].request.model != model}

    def take(self, now: float, ready: Callable[[str], bool] = lambda model: True) -> tuple[Job, ...]:
        """Return the next batch that may go at `now`, of a model that is `ready`, or () if none may yet."""
        ripe = [
            key
            for key, group in self._groups.items()
            if self._goes_at(group) <= now and ready(group[0].request.model)
        ]
        if not ripe:
            return ()
        key = min(ripe, key=lambda key: self._groups[key][0].number)
        batch: list[Job] = []
        left: deque[Job] = deque()
        images = 0
        for job in self._groups[key]:
            count = len(job.request.seeds)
            if not batch or images + count <= self._max_images:
                batch.append(job)
                images += count
            else:
                left.append(job)  # a smaller one behind it may still fit
        if left:
            self._groups[key] = left
        else:
            del self._groups[key]
        return tuple(batch)

    def next_deadline(self, ready: Callable[[str], bool] = lambda model: True) -> float | None:
        """Return when the next batch of a model that is `ready` goes if no job is added; None if none does."""
        times = (self._goes_at(group) for group in self._groups.values() if ready(group[0].request.model))
        return min(times, default=None)

    def _goes_at(self, group: deque[Job]) -> float:
        images = 0
        for job in group:
            images += len(job.request.seeds)
            if images >= self._max_images:
                return float("-inf")
        return group[0].arrived + self._max_wait

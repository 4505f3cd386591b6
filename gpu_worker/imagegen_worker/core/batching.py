"""Forming of static batches."""

from collections import deque
from collections.abc import Callable, Hashable

from imagegen_worker.core.events import Job


class BatchFormer:
    """Forms batches of jobs with equal batch keys, of up to `max_images` images.

    A full batch is due at once, another one when its oldest job has waited for `max_wait` seconds since its
    arrival. The batch with the oldest job goes first and includes that job, so no job starves. A job that does
    not fit is passed by smaller ones behind it. A job with more than `max_images` images runs alone. `max_images`
    1 with `max_wait` 0 disables batching.
    """

    def __init__(self, max_images: int, max_wait: float) -> None:
        self._max_images = max_images
        self._max_wait = max_wait
        self._groups: dict[Hashable, deque[Job]] = {}

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def add(self, job: Job) -> None:
        """Queue a job. Jobs are added in the approximate order of arrival: input images are decoded first."""
        self._groups.setdefault(job.request.batch_key, deque()).append(job)

    def remove(self, number: int) -> bool:
        """Remove a job; return whether it was queued."""
        for key, group in self._groups.items():
            for job in group:
                if job.number == number:
                    group.remove(job)
                    if not group:
                        del self._groups[key]
                    return True
        return False

    def models(self) -> list[str]:
        """Return the models of the queued jobs, that of the oldest job first."""
        oldest = sorted((group[0] for group in self._groups.values()), key=lambda job: job.number)
        return list(dict.fromkeys(job.request.model for job in oldest))

    def discard(self, model: str) -> None:
        """Remove all jobs for a model."""
        self._groups = {key: group for key, group in self._groups.items() if group[0].request.model != model}

    def take(self, now: float, ready: Callable[[str], bool] = lambda model: True) -> tuple[Job, ...]:
        """Remove and return the next batch that is due, of a model that is `ready`; () if none is due."""
        due = [
            key
            for key, group in self._groups.items()
            if self._due_at(group) <= now and ready(group[0].request.model)
        ]
        if not due:
            return ()
        key = min(due, key=lambda key: self._groups[key][0].number)
        batch: list[Job] = []
        rest: deque[Job] = deque()
        images = 0
        for job in self._groups[key]:
            count = len(job.request.seeds)
            if not batch or images + count <= self._max_images:
                batch.append(job)
                images += count
            else:
                rest.append(job)  # a smaller one behind it may still fit
        if rest:
            self._groups[key] = rest
        else:
            del self._groups[key]
        return tuple(batch)

    def next_deadline(self, ready: Callable[[str], bool] = lambda model: True) -> float | None:
        """Return when the next batch of a model that is `ready` is due if no job is added; None: never."""
        times = (self._due_at(group) for group in self._groups.values() if ready(group[0].request.model))
        return min(times, default=None)

    def _due_at(self, group: deque[Job]) -> float:
        images = 0
        for job in group:
            images += len(job.request.seeds)
            if images >= self._max_images:
                return float("-inf")
        return group[0].arrived + self._max_wait

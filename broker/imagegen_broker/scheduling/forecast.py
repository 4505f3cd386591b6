"""`Forecast`: what one worker has left to do, by the costs of its requests and the time that has passed."""

from collections.abc import Iterable
from typing import NamedTuple

from imagegen_broker.core.records import Request, Worker
from imagegen_broker.scheduling.cost_estimates import CostEstimates
from imagegen_broker.scheduling.finish_times import DeviceCost, Job, finish_times, progress

TOLERANCE_SECONDS = 0.005
"""Age up to which a forecast is used again."""
_NOTABLE_SECONDS = 0.1
"""Error of a prediction below which it teaches nothing: messages and encoding take some time as well."""
_FORGETTING_SECONDS = 10.0
"""Time in which an idle worker's correction loses half of its orders of magnitude."""
_MIN_CORRECTION, _MAX_CORRECTION = 1e-2, 1e9
_FOREIGN = "foreign"
"""Group of the requests of other brokers, whose shapes are unknown."""


class Prediction(NamedTuple):
    """What happens if a worker gets one more request, in seconds."""

    added_delay: float
    """Sum of the delays of all requests at the worker, and of the time until the new one finishes."""
    finish: float
    """Time until the new request finishes."""


class Forecast:
    """The requests at a worker with their remaining forwards, and the factor by which its cost model is wrong."""

    __slots__ = (
        "_at",
        "_continuous",
        "_corrected_at",
        "_costs",
        "_finished_before",
        "_finished_seconds",
        "_jobs",
        "_left",
        "_max_images",
        "_started",
        "_total",
        "correction",
    )

    def __init__(self, worker: Worker, now: float) -> None:
        self._at = now
        self._continuous = worker.ready.batching == "continuous"
        self._max_images = min(worker.ready.max_batch_size, worker.ready.capacity)
        self._costs: dict[bytes, DeviceCost] = {}
        """Costs of the requests at the worker, in the order of their arrival."""
        self._left: dict[bytes, float] = {}
        """Remaining forwards of the requests that run; negative if they should have ended."""
        self._started: dict[bytes, float] = {}
        """When these started."""
        self._finished_seconds = 0.0
        """Predicted seconds alone of all requests that have been answered."""
        self._finished_before: dict[bytes, float] = {}
        """The same as of the start of each running request."""
        self._jobs: list[Job] | None = None
        self._total = 0.0
        self._corrected_at = now
        self.correction = 1.0
        """Measured seconds over predicted ones."""

    def __bool__(self) -> bool:
        """Return whether the worker has requests."""
        return bool(self._costs)

    @property
    def images(self) -> int:
        """The number of images at the worker."""
        return sum(cost.images for cost in self._costs.values())

    @property
    def groups(self) -> Iterable[DeviceCost]:
        """The costs of the worker's requests."""
        return self._costs.values()

    def update(self, worker: Worker, estimates: CostEstimates, now: float) -> None:
        """Follow a worker whose requests have been the same since the last change, up to now.

        Call it before each change of what runs at the worker, and after dispatches.
        """
        costs, assigned, foreign = self._costs, worker.assigned, worker.foreign
        for request_id in [each for each in costs if each not in assigned and each not in foreign]:
            self.remove(request_id)
        for request_id, assignment in assigned.items():
            if request_id not in costs:
                costs[request_id] = self._cost_at(worker, assignment.request, estimates)
        for request_id in sorted(foreign - costs.keys()) if foreign else ():
            seconds = estimates.seconds_per_image(worker, worker.ready.models[0])
            costs[request_id] = DeviceCost(_FOREIGN, 1, 1.0, 0.0, seconds)
        self._start(worker)
        self.advance(now)
        self._jobs = None

    def _start(self, worker: Worker) -> None:
        """Add the running requests that are new."""
        new = [each for each in worker.started if each in self._costs and each not in self._left]
        for request_id in new:
            started = self._started[request_id] = worker.started[request_id]
            self._left[request_id] = self._costs[request_id].forwards
            self._finished_before[request_id] = self._finished_seconds
            self._at = min(self._at, started) if len(self._left) == len(new) else self._at

    def remove(self, request_id: bytes) -> None:
        """Forget a request that has left the worker."""
        self._costs.pop(request_id, None)
        self._left.pop(request_id, None)
        self._started.pop(request_id, None)
        self._finished_before.pop(request_id, None)
        self._jobs = None

    def _cost_at(self, worker: Worker, request: Request, estimates: CostEstimates) -> DeviceCost:
        """Return the cost of a request that was just assigned; the first one of a model includes its loading."""
        model = request.model or ""
        cost = estimates.device_cost(worker, request.submit, model)
        if worker.warm and model not in worker.warm and worker.assigned_models[request.model] <= 1:
            cost = with_loading(cost, estimates.load_seconds(worker, model))
        return cost

    def advance(self, now: float) -> None:
        """Let the running requests progress until now."""
        seconds, before, self._at = now - self._at, self._at, max(now, self._at)
        if seconds <= 0 or not self._left:
            return
        self._jobs = None
        # Requests that should have ended take no time of the others: their images are being encoded.
        ids = [each for each, left in self._left.items() if left > 0]
        jobs = [Job(self._costs[each], self._left[each], True, before - self._started[each]) for each in ids]
        for request_id, left in self._left.items():
            if left <= 0:
                self._left[request_id] = left - seconds / self._forward_alone(request_id)
        if jobs:
            after = progress(jobs, self._max_images, seconds / self.correction)
            self._left.update(zip(ids, after, strict=True))

    def _forward_alone(self, request_id: bytes) -> float:
        return self._costs[request_id].forward_alone * self.correction

    def progressed(self, request_id: bytes, share: float) -> None:
        """Store the share of a running request's forwards that the worker has reported as done."""
        if request_id in self._left:
            self._left[request_id] = self._costs[request_id].forwards * (1 - share)
            self._jobs = None

    def answered(self, request_id: bytes, now: float) -> None:
        """Correct the predictions by a request that ended successfully now; `update` must precede."""
        if request_id not in self._left:
            return
        cost = self._costs[request_id]
        measured = now - self._started[request_id]
        # Whatever the order, the worker did at most all of its work meanwhile, and at least that of this request.
        most = self._finished_seconds - self._finished_before[request_id]
        most = (most + sum(each.alone_seconds for each in self._costs.values())) * self.correction
        shared = cost.forward_seconds / self._max_images + cost.image_seconds
        least = cost.forwards * shared * cost.images * self.correction
        self._finished_seconds += cost.alone_seconds
        if measured > most + _NOTABLE_SECONDS:
            self._correct(self.correction * measured / most, now)
        elif measured < least - _NOTABLE_SECONDS:
            self._correct(self.correction * measured / least, now)

    def _correct(self, correction: float, now: float) -> None:
        self.correction = min(max(correction, _MIN_CORRECTION), _MAX_CORRECTION)
        self._corrected_at = now
        self._jobs = None

    def _forget_correction(self, now: float) -> None:
        """Let an idle worker's correction fade: without requests, nothing would show that it is outdated."""
        if not self._costs and self.correction != 1.0 and now > self._corrected_at:
            share = 0.5 ** ((now - self._corrected_at) / _FORGETTING_SECONDS)
            self._correct(self.correction**share, now)

    def busy_seconds(self) -> float:
        """Return about how long the worker is busy, in O(requests)."""
        seconds = 0.0
        longest: dict[object, float] = {}
        for request_id, cost in self._costs.items():
            left = abs(self._left.get(request_id, cost.forwards))
            seconds += left * cost.image_seconds * cost.images
            longest[cost.group] = max(longest.get(cost.group, 0.0), left * cost.forward_seconds)
        return (seconds + sum(longest.values())) * self.correction

    def with_request(self, cost: DeviceCost, now: float) -> Prediction:
        """Return what happens if the worker also gets a request with this cost."""
        if not self._costs:
            self._forget_correction(now)
            seconds = cost.alone_seconds * self.correction
            return Prediction(seconds, seconds)
        if now - self._at > TOLERANCE_SECONDS:
            self.advance(now)
        if self._jobs is None:
            self._jobs = self._current_jobs()
            self._total = sum(self._finish(self._jobs))
        finish = self._finish([*self._jobs, Job(cost, cost.forwards, is_running=False)])
        return Prediction((sum(finish) - self._total) * self.correction, finish[-1] * self.correction)

    def _finish(self, jobs: list[Job]) -> list[float]:
        return finish_times(jobs, self._max_images, is_continuous=self._continuous)

    def _current_jobs(self) -> list[Job]:
        """Return the jobs. One that should have ended is assumed to take as long again as it is overdue."""
        return [
            Job(cost, abs(self._left[each]), True, self._at - self._started[each])
            if each in self._left
            else Job(cost, cost.forwards, False)
            for each, cost in self._costs.items()
        ]


def with_loading(cost: DeviceCost, seconds: float) -> DeviceCost:
    """Return the cost of a request for whose model the device must load something first."""
    forward = cost.forward_seconds + cost.image_seconds * cost.images
    return cost._replace(forwards=cost.forwards + seconds / forward)

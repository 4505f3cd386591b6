"""A device with continuous batching on simulated time: requests of equal size share forwards."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from benchmarks.simulated.clock import Clock
from benchmarks.simulated.device import ENCODE_SECONDS, finished
from imagegen_protocol.costs import CostModel
from imagegen_worker.core import events as ev
from imagegen_worker.engines.continuous.turns import WaitingGroup, choose


class ForwardCost(NamedTuple):
    """The time of a forward of n images of m megapixels: (`fixed` + `per_megapixel` · m · n) · `slow` seconds."""

    fixed: float
    per_megapixel: float
    slow: float = 1.0
    slower_from: float = float("inf")
    """Time from which each forward takes twice as long."""
    declared: float = 1.0
    """Factor between the cost model that the worker reports and the true one."""

    def seconds(self, megapixels: float, images: int, now: float = 0.0) -> float:
        """Return the time of a forward that starts now."""
        factor = self.slow if now < self.slower_from else 2 * self.slow
        return factor * (self.fixed + self.per_megapixel * megapixels * images)

    @property
    def reported(self) -> CostModel:
        """The cost model that the worker reports."""
        factor = self.slow * self.declared
        return CostModel(forward_seconds=self.fixed * factor, megapixel_seconds=self.per_megapixel * factor)


class _Running:
    """A running request."""

    def __init__(self, job: ev.Job, now: float) -> None:
        self.job = job
        self.started = now
        self.left = job.request.num_inference_steps
        self.seconds = 0.0


class ContinuousDevice:
    """Forwards as the continuous engine runs them: groups take turns, and requests join between two forwards."""

    def __init__(
        self, clock: Clock, cost: ForwardCost, *, max_batch_size: int, post: Callable[[ev.Event], None]
    ) -> None:
        self._clock = clock
        self._cost = cost
        self._max_batch_size = max_batch_size
        self._post = post
        self._waiting: list[ev.Job] = []
        self._running: dict[int, _Running] = {}
        self._in_forward = False
        self.busy_seconds = 0.0

    @property
    def seconds_per_image(self) -> float:
        """The seconds of an image of half a megapixel and 25 steps in a full batch, as the worker reports them."""
        return 25 * self._cost.seconds(0.5, self._max_batch_size) / self._max_batch_size

    @property
    def busy(self) -> bool:
        """Whether a request runs."""
        return bool(self._running)

    def obey(self, command: ev.Command) -> None:
        """Queue a job, or remove one."""
        match command:
            case ev.Job():
                self._waiting.append(command)
            case ev.Cancel(number):
                self._waiting = [job for job in self._waiting if job.number != number]
                self._running.pop(number, None)
        if not self._in_forward:
            self._in_forward = True
            self._clock.after(0.0, self._forward)

    def _admit(self) -> None:
        images = sum(len(each.job.request.seeds) for each in self._running.values())
        while self._waiting:
            images += len(self._waiting[0].request.seeds)
            if self._running and images > self._max_batch_size:
                return
            job = self._waiting.pop(0)
            self._running[job.number] = _Running(job, self._clock.now)
            self._post(ev.Started((job.number,)))

    def _forward(self) -> None:
        """Start the next forward, if there is one."""
        self._admit()
        if not self._running:
            self._in_forward = False
            self._post(ev.Idle())
            return
        groups: dict[Hashable, list[_Running]] = {}
        for each in self._running.values():
            groups.setdefault((each.job.request.width, each.job.request.height), []).append(each)
        members = groups[choose({key: self._waiting_group(each) for key, each in groups.items()})]
        seconds = self._seconds(members)
        self._clock.after(seconds, self._end, members, seconds)

    def _seconds(self, members: list[_Running]) -> float:
        request = members[0].job.request
        megapixels = request.width * request.height / 1e6
        return self._cost.seconds(megapixels, _images(members), self._clock.now)

    def _waiting_group(self, members: list[_Running]) -> WaitingGroup:
        remaining = min(each.left for each in members) * self._seconds(members)
        return WaitingGroup(_images(members), remaining, self._clock.now - min(each.started for each in members))

    def _end(self, members: list[_Running], seconds: float) -> None:
        self.busy_seconds += seconds
        for each in members:
            each.left -= 1
            each.seconds += seconds
            if not each.left and self._running.pop(each.job.number, None) is not None:
                self._clock.after(ENCODE_SECONDS, self._post, finished(each.job, len(members), each.seconds))
        self._forward()


def _images(members: list[_Running]) -> int:
    return sum(len(each.job.request.seeds) for each in members)

"""A device that makes batches and takes the time of the simulated backend's cost model, on simulated time."""

from collections.abc import Callable
from typing import NamedTuple

from benchmarks.simulated.clock import Alarm, Clock
from imagegen_protocol.costs import CostModel
from imagegen_protocol.messages import ImageInfo
from imagegen_worker.backends.simulated import MODEL
from imagegen_worker.core import events as ev
from imagegen_worker.core.batching import BatchFormer
from imagegen_worker.core.model import ResolvedRequest

IMAGE = b"an image"
ENCODE_SECONDS = 0.01
"""From the end of a batch to its encoded images: meanwhile the next batch has begun."""


class Cost(NamedTuple):
    """A batch of n images takes `batch_seconds` + n · `image_seconds`, all of it times `slow`.

    With `by_work`, times the steps and the pixels of its requests, over those of the model's defaults.
    """

    batch_seconds: float = 0.2
    image_seconds: float = 0.1
    slow: float = 1.0
    by_work: bool = False

    @property
    def reported(self) -> CostModel:
        """The cost model that the worker reports: exact for requests of the model's default size and steps."""
        megapixels, steps = MODEL.width * MODEL.height / 1e6, MODEL.num_inference_steps
        return CostModel(
            forward_seconds=self.slow * self.batch_seconds / steps,
            megapixel_seconds=self.slow * self.image_seconds / steps / megapixels,
        )

    def seconds(self, images: int, request: ResolvedRequest | None = None) -> float:
        """Return the time of a batch of so many images, of requests like this one."""
        work = 1.0
        if self.by_work and request is not None:
            pixels = request.width * request.height / (MODEL.width * MODEL.height)
            work = pixels * request.num_inference_steps / MODEL.num_inference_steps
        return self.slow * work * (self.batch_seconds + images * self.image_seconds)


class Device:
    """Batches as `StaticEngine` makes them: the same `BatchFormer`, the same events in the same order."""

    def __init__(
        self, clock: Clock, cost: Cost, *, max_batch_size: int, max_wait: float, post: Callable[[ev.Event], None]
    ) -> None:
        self._clock = clock
        self._cost = cost
        self._max_batch_size = max_batch_size
        self._former = BatchFormer(max_batch_size, max_wait)
        self._post = post
        self._alarm = Alarm(clock, self._look)
        self._running: tuple[ev.Job, ...] = ()
        self._over: set[int] = set()
        self.busy_seconds = 0.0
        self.smoothed_seconds: float | None = None
        """The measured time of an image; a moving average, where the cost depends on what is asked for."""

    @property
    def seconds_per_image(self) -> float:
        """What the backend tells of its speed: the cost of one image in a full batch."""
        if self.smoothed_seconds is not None:
            return self.smoothed_seconds
        return self._cost.seconds(self._max_batch_size) / self._max_batch_size

    @property
    def busy(self) -> bool:
        """Whether a batch runs."""
        return bool(self._running)

    def obey(self, command: ev.Command) -> None:
        """Take a job, or forget one. A batch that nobody wants any more is run to its end all the same."""
        match command:
            case ev.Job():
                self._former.add(command)
            case ev.Cancel(number):
                if not self._former.remove(number):
                    self._over.add(number)
        if not self._running:
            self._alarm.set(self._clock.now)

    def _look(self) -> float | None:
        """Begin a batch, if one may go; else return when one may."""
        if self._running:
            return None
        batch = self._former.take(self._clock.now)
        if not batch:
            deadline = self._former.next_deadline()
            # A hair later, so that rounding does not make it ring just before.
            return None if deadline is None else max(deadline, self._clock.now) + 1e-6
        self._running = batch
        images = sum(len(job.request.seeds) for job in batch)
        seconds = 0.0
        for first in range(0, images, self._max_batch_size):
            seconds += self._cost.seconds(min(self._max_batch_size, images - first), batch[0].request)
        self._post(ev.Started(tuple(job.number for job in batch)))
        self._clock.after(seconds, self._end, seconds, images)
        return None

    def _end(self, seconds: float, images: int) -> None:
        batch, self._running = self._running, ()
        self.busy_seconds += seconds
        if self._cost.by_work:
            before = self.seconds_per_image
            self.smoothed_seconds = before + 0.1 * (seconds / images - before)
        self._post(
            ev.CallDone(
                requests=len(batch),
                images=images,
                steps=batch[0].request.num_inference_steps,
                seconds=seconds,
                seconds_per_image=self.seconds_per_image,
            )
        )
        for job in batch:
            if job.number not in self._over:
                self._clock.after(ENCODE_SECONDS, self._post, finished(job, len(batch), seconds))
        self._over.clear()
        self._post(ev.Idle())
        self._alarm.set(self._clock.now)


def finished(job: ev.Job, batch_size: int, seconds: float) -> ev.Finished:
    """Return the event of a request that was generated in so many seconds."""
    request = job.request
    return ev.Finished(
        number=job.number,
        images=(IMAGE,) * len(request.seeds),
        infos=tuple(
            ImageInfo(format="png", width=request.width, height=request.height, seed=seed)
            for seed in request.seeds
        ),
        batch_size=batch_size,
        queue_seconds=0.0,
        generation_seconds=seconds,
        encode_seconds=0.0,
    )

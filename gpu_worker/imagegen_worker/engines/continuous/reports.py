"""Reports to the worker's core: one `CallDone` for each forward of a denoiser, and what each request cost."""

from collections.abc import Iterable, Mapping

from imagegen_worker.core.cost_meter import CostMeter
from imagegen_worker.core.events import CallDone, CallFailed
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous.calls import Task
from imagegen_worker.engines.continuous.scheduler import ForwardDone, ForwardSplit
from imagegen_worker.mailbox import Mailbox

SMOOTHING = 0.2
"""Weight of the newest image in the moving average of the seconds of an image."""


class ForwardReports:
    """Posts forwards to a mailbox, each together with the events until the next forward.

    Images are completed after their last forward, so a forward is posted when the next one is known.
    """

    def __init__(self, mailbox: Mailbox, meter: CostMeter | None = None) -> None:
        self._mailbox = mailbox
        self._meter = meter or CostMeter()
        self._seconds_per_image: float | None = None
        # Contents of the next CallDone.
        self._forward: ForwardDone | None = None
        self._numbers: tuple[int, ...] = ()
        self._images_completed = 0
        self._beside_seconds = 0.0
        self._fallbacks: list[str] = []
        self._waits: list[float] = []

    def add_split(self, event: ForwardSplit) -> None:
        """Post a forward that ran out of memory."""
        images = sum(task.images for task in event.tasks)
        self._mailbox.post(CallFailed(images, 0.0, split=event.max_rows > 0))

    def start_job(self, number: int, request: ResolvedRequest) -> None:
        """Add a job that starts to run."""
        self._meter.start(number, request)

    def discard_job(self, number: int) -> None:
        """Remove a job that was cancelled or failed, if it runs."""
        self._meter.discard(number)

    def finish_job(self, number: int) -> None:
        """Post what a job cost that has all of its images."""
        if (measured := self._meter.finish(number)) is not None:
            self._mailbox.post(measured)

    def add_forward(self, event: ForwardDone, images: Mapping[int, int], waits: Iterable[float]) -> None:
        """Add a forward.

        `images`: numbers of images by job. `waits`: seconds until it for jobs without an earlier one.
        """
        if event.stage.is_denoiser:
            self._meter.add_forward(images, event.seconds)
            if self._forward is not None:
                self.post()
            self._forward = event
            self._numbers = tuple(images)
            self._waits += waits
        else:
            (self._meter.add_decoding if event.stage.is_decoder else self._meter.add_other)(images, event.seconds)
            self._beside_seconds += event.seconds
        if event.fallback:
            self._fallbacks.append(event.fallback)

    def add_images(self, task: Task) -> None:
        """Add the images of a completed task."""
        self._images_completed += task.wanted
        seconds = task.seconds / task.wanted
        if self._seconds_per_image is None:
            self._seconds_per_image = seconds
        self._seconds_per_image += SMOOTHING * (seconds - self._seconds_per_image)

    def post(self) -> None:
        """Post the last forward together with the images that were completed since."""
        done = self._forward
        if done is None and not self._images_completed:
            return
        self._mailbox.post(
            CallDone(
                requests=1 if done is None else done.images,  # None: a pipeline without a denoiser
                images=self._images_completed,
                steps=1,
                seconds=0.0 if done is None else done.seconds,
                seconds_per_image=self._seconds_per_image,
                rows=0 if done is None else done.rows,
                beside_seconds=self._beside_seconds,
                fallbacks=tuple(self._fallbacks),
                waits=tuple(self._waits),
                numbers=self._numbers,
            )
        )
        self._forward = None
        self._numbers = ()
        self._images_completed = 0
        self._beside_seconds = 0.0
        self._fallbacks.clear()
        self._waits.clear()

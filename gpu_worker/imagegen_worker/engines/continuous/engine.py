"""Continuous batching on the device thread: jobs join and leave the running batch at every forward."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from imagegen_protocol.errors import GenerationFailedError, OutOfMemoryError
from imagegen_worker.backends import (
    DeviceLostError,
    DeviceMemoryError,
    GeneratedImage,
    OnStep,
    Row,
    Sketch,
    StoppedError,
)
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.core.events import (
    CallFailed,
    Cancel,
    Command,
    Failed,
    Idle,
    Job,
    LoadModel,
    Started,
    Stepped,
    Stop,
)
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous.admission import AdmissionQueue
from imagegen_worker.engines.continuous.calls import Task, current_task
from imagegen_worker.engines.continuous.limits import MemoryLimits, RowCosts, SlotLimit
from imagegen_worker.engines.continuous.reports import ForwardReports
from imagegen_worker.engines.continuous.scheduler import BatchScheduler, ForwardSplit, SchedulerEvent
from imagegen_worker.engines.continuous.timing import Timer
from imagegen_worker.engines.static import MemoryHint, error_answer
from imagegen_worker.images.encoding import EncodePool, RawResult
from imagegen_worker.mailbox import Mailbox
from imagegen_worker.models.manager import ModelProvider, SingleModel

_log = logging.getLogger(__name__)


class StepwiseBackend(Protocol):
    """A loaded model whose pipeline calls run their forwards through a `BatchScheduler`."""

    @property
    def timer(self) -> Timer:
        """Measures forwards on the device."""

    def session(self) -> AbstractContextManager[Any]:
        """Return a context that is open as long as the engine runs, on the device thread."""

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """Return the key that requests have in common if they can share a pipeline call; None: they can't.

        `generate` takes rows with equal keys together, and generates the same images as of each row alone.
        """

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """Return whether forwards for such requests leave out the rows of cancelled images (`unwanted`)."""

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """Return what the client should know about a generated request: what of it had no effect."""

    def generate(self, rows: Sequence[Row], on_step: OnStep) -> Sequence[GeneratedImage]:
        """Generate one image for each row; the requests of several rows have the same `call_key`.

        Runs in a task of a scheduler; its calls of the model are `wait_for_forward`. Raises `DeviceMemoryError`,
        `DeviceLostError`, the exceptions thrown into the task, and those of `on_step`; any other exception counts
        as caused by the request.
        """


@dataclass(slots=True, eq=False)
class _ActiveJob:
    """A job that has not ended, with its running tasks and its images by the index of their seeds.

    `steps`: completed steps of each image. `alone`: a call for several images failed, and each of them now gets a
    call of its own. `repeated`: an image ran out of memory with no other running, and was tried again.
    """

    job: Job
    tasks: set[Task] = field(default_factory=set)
    images: dict[int, GeneratedImage] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    started_at: float | None = None
    stepped: bool = False
    alone: bool = False
    repeated: bool = False
    batch_size: int = 1


_JobImage = tuple[_ActiveJob, int]
"""A job and the index of one of its images."""


@dataclass(slots=True, eq=False)
class _BatchedCall:
    """The images of one pipeline call, of one job or of several that started at the same time.

    `slots`: the slots that the call occupies, of the `max_batch_size` slots of the engine.
    """

    shape: Hashable
    images: tuple[_JobImage, ...]
    slots: int


class ContinuousEngine:
    """Implements `Engine`. At most `max_batch_size` images run at a time; the others wait.

    `fits` is the size (pixels) of an image that is known to fit into device memory. `memory_limits` and `costs`
    hold the measurements of the backend's first forwards.
    """

    def __init__(
        self,
        backend: StepwiseBackend,
        encoder: EncodePool,
        *,
        max_batch_size: int,
        clock: Callable[[], float] = time.monotonic,
        fits: tuple[int, int] | None = None,
        memory_limits: MemoryLimits | None = None,
        costs: RowCosts | None = None,
        models: ModelProvider | None = None,
    ) -> None:
        self._models = models or SingleModel()
        self._backend = backend
        self._encoder = encoder
        self._slot_limit = SlotLimit(max_batch_size)
        self._clock = clock
        self._memory_hint = MemoryHint(fits)
        self._memory_limits = memory_limits
        self._costs = costs
        self._jobs: dict[int, _ActiveJob] = {}
        self._queue: AdmissionQueue[_JobImage] = AdmissionQueue()
        self._running: Counter[Hashable] = Counter()
        self._stopping = False
        self._busy = False

    def run(self, mailbox: Mailbox) -> None:
        """Execute commands until `Stop`, then finish the running jobs. Raises `DeviceLostError`."""
        with self._backend.session():
            self._run(mailbox)

    def _run(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._reports = ForwardReports(mailbox)
        self._scheduler = BatchScheduler(
            observe=self._observe,
            timer=self._backend.timer,
            memory_limits=self._memory_limits,
            costs=self._costs,
            clock=self._clock,
        )
        while True:
            while (command := mailbox.take(0)) is not None:
                self._obey(command)
            self._update_models()
            self._admit()
            if self._scheduler.step():
                self._collect()
                continue
            if self._running:  # no call waits for a forward: the last task has just ended
                self._collect()
                continue
            if self._stopping:
                return
            if not self._queue and (command := mailbox.take(None)) is not None:
                self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Job():
                seeds = command.request.seeds
                active = self._jobs[command.number] = _ActiveJob(command, steps=[0] * len(seeds))
                for index in range(len(seeds)):
                    self._queue.add(_shape(active), (active, index))
            case LoadModel():
                self._models.request(command.name)
            case Cancel():
                if (unwanted := self._jobs.get(command.number)) is not None:
                    self._drop(unwanted)
                    self._collect()
            case Stop():
                self._stopping = True

    # ---- start and end of jobs ---------------------------------------------------------------------------------

    def _update_models(self) -> None:
        """Load models; discard the jobs of models that can't be loaded."""
        if self._stopping:
            return
        waiting = list(dict.fromkeys(map(_model, self._queue.shapes())))
        running = {_model(shape) for shape in self._running}
        for name in self._models.update(self._mailbox, running, waiting):
            for active in [each for each in self._jobs.values() if each.job.request.model == name]:
                self._drop(active)
            self._collect()

    def _is_ready(self, shape: Hashable) -> bool:
        return self._models.is_ready(_model(shape))

    def _admit(self) -> None:
        """Start images while slots are free; images with equal call keys share one pipeline call."""
        while calls := self._next_calls():
            for call in calls:
                self._start(call)
            self._collect()

    def _next_calls(self) -> list[_BatchedCall]:
        """Take as many images from the queue as there are free slots; return the calls for them."""
        by_key: dict[Hashable, list[_JobImage]] = {}
        shapes: dict[Hashable, Hashable] = {}
        while not self._stopping and self._running.total() < self._slot_limit.slots:
            taken = self._queue.take(self._running, self._is_ready)
            if taken is None:
                break
            shape, (active, index) = taken
            self._running[shape] += 1
            request = active.job.request
            shared = None if active.alone else self._backend.call_key(request)
            key = (active, index) if shared is None else shared
            shapes[key] = shape
            by_key.setdefault(key, []).append((active, index))
        return [_BatchedCall(shapes[key], tuple(images), len(images)) for key, images in by_key.items()]

    def _start(self, call: _BatchedCall) -> None:
        rows = []
        for active, index in call.images:
            if active.started_at is None:
                active.started_at = self._clock()
                self._busy = True
                self._reports.start_job(active.job.number, active.job.request)
                self._mailbox.post(Started((active.job.number,)))
            request = active.job.request
            rows.append(Row(request, request.seeds[index], active.job.preview and index == 0))
        work = partial(self._backend.generate, rows, self._on_step(call))
        task = self._scheduler.start(work, tag=call, images=len(rows), **_about(rows[0].request))
        for active, _ in call.images:
            active.tasks.add(task)

    def _on_step(self, call: _BatchedCall) -> OnStep:
        """Return the callback that reports the steps of a call, for each job as the mean over its images."""

        def on_step(step: int, steps: int, sketches: Sequence[Sketch | None] = ()) -> None:
            if (task := current_task()) is not None:
                task.steps_left = steps - step
                # Its next forward has rows for the wanted images only.
                self._free_slots(call, call.slots - task.wanted)
            for active, index in call.images:
                before = sum(active.steps) // len(active.steps)
                active.steps[index] = step
                mean = sum(active.steps) // len(active.steps)
                if mean != before and self._is_active(active):
                    self._mailbox.post(Stepped((active.job.number,), mean, steps))
            for (active, _), sketch in zip(call.images, sketches, strict=False):  # none at all, or one for each
                if sketch is not None and self._is_active(active):
                    self._encoder.sketch(active.job.number, sketch)

        return on_step

    def _free_slots(self, call: _BatchedCall, count: int) -> None:
        """Free slots that a call occupies."""
        call.slots -= count
        self._running[call.shape] -= count
        if not self._running[call.shape]:
            del self._running[call.shape]

    def _is_active(self, active: _ActiveJob) -> bool:
        """Return whether the job has not ended."""
        return self._jobs.get(active.job.number) is active

    def _collect(self) -> None:
        """Collect the images of the ended tasks; submit the finished jobs to the encoders."""
        while ended := self._scheduler.ended():
            for task in ended:
                call: _BatchedCall = task.tag
                self._free_slots(call, call.slots)
                for active, _ in call.images:
                    active.tasks.discard(task)
                if task.error is None:
                    self._completed(call, task)
                else:
                    self._failed(call, task.error)
        if self._busy and not self._running and not self._queue:
            self._busy = False
            self._scheduler.settle(wait=True)
            self._reports.post()
            self._mailbox.post(Idle())

    def _completed(self, call: _BatchedCall, task: Task) -> None:
        """Store the images of a call; finish the jobs that are complete now."""
        self._scheduler.settle()  # the images are here, so the times of their forwards are known
        self._reports.add_images(task)
        self._slot_limit.completed(len(call.images))
        self._memory_hint.record(call.images[0][0].job.request)
        for (active, index), image in zip(call.images, task.result, strict=True):
            active.images[index] = image
            active.batch_size = max(active.batch_size, task.largest_batch)
            if len(active.images) == len(active.job.request.seeds) and self._is_active(active):
                self._finish(active)

    def _finish(self, active: _ActiveJob) -> None:
        """Submit a job that has all of its images to the encoders."""
        del self._jobs[active.job.number]
        self._reports.finish_job(active.job.number)
        request = active.job.request
        assert active.started_at is not None
        self._encoder.submit(
            RawResult(
                number=active.job.number,
                images=tuple(active.images[index] for index in range(len(request.seeds))),
                request=replace(request, warnings=(*request.warnings, *self._backend.warnings(request))),
                batch_size=active.batch_size,
                queue_seconds=max(active.started_at - active.job.arrived, 0.0),
                generation_seconds=self._clock() - active.started_at,
            )
        )

    def _failed(self, call: _BatchedCall, error: BaseException) -> None:
        """End the job of a call that raised, or queue its images again.

        Each image of several gets a call of its own. One that ran out of memory waits until fewer run.
        """
        if isinstance(error, DeviceLostError) or not isinstance(error, Exception):
            raise error
        several = len(call.images) > 1
        if not several and not self._may_repeat(call, error):
            self._fail(call.images[0][0], error)
            return
        for active, index in reversed(call.images):
            if self._is_active(active):
                active.alone |= several
                active.steps[index] = 0
                self._queue.add(call.shape, (active, index), first=True)
        if not several:
            self._mailbox.post(CallFailed(1, 0.0, split=True))
            _log.warning("an image ran out of memory and is repeated slots=%d", self._slot_limit.slots)
            return
        if not isinstance(error, StoppedError):
            count = len(call.images)
            _log.warning(
                "a call for several images failed, each now gets a call of its own images=%d",
                count,
                exc_info=error,
            )
        release_frames(error)

    def _may_repeat(self, call: _BatchedCall, error: Exception) -> bool:
        """Return whether the image of a call may be tried again: fewer images will run, or memory was released."""
        if not isinstance(error, DeviceMemoryError):
            return False
        active = call.images[0][0]
        if others := self._running.total():
            self._slot_limit.too_many(others)
            return True
        repeated, active.repeated = active.repeated, True
        return not repeated

    def _fail(self, active: _ActiveJob, error: Exception) -> None:
        """Report the error of a job whose own call raised."""
        was_active = self._is_active(active)
        self._drop(active)
        if not was_active or isinstance(error, StoppedError):
            release_frames(error)
            return
        if isinstance(error, DeviceMemoryError):
            message = self._memory_hint.error_message(active.job.request)
            self._mailbox.post(Failed(active.job.number, OutOfMemoryError.code, message))
            return
        code, message = error_answer(error)
        if code == GenerationFailedError.code:
            _log.warning("job %d failed", active.job.number, exc_info=error)
        release_frames(error)
        self._mailbox.post(Failed(active.job.number, code, message))

    def _drop(self, active: _ActiveJob) -> None:
        """Discard a job, and cancel its calls that no other job needs; these then count as ended."""
        if self._is_active(active):
            del self._jobs[active.job.number]
            self._reports.discard_job(active.job.number)
        self._queue.discard({(active, index) for index in range(len(active.job.request.seeds))})
        for task in list(active.tasks):
            images = task.tag.images
            if not any(self._is_active(other) for other, _ in images):
                self._scheduler.cancel(task)
            elif self._backend.drops_rows(active.job.request):
                task.unwanted.update(at for at, (other, _) in enumerate(images) if other is active)

    # ---- reports -----------------------------------------------------------------------------------------------

    def _observe(self, event: SchedulerEvent) -> None:
        if isinstance(event, ForwardSplit):
            self._reports.add_split(event)
            return
        jobs: list[_ActiveJob] = [active for task in event.tasks for active, _ in task.tag.images]
        images = Counter(active.job.number for active in jobs)
        started_at = self._clock() - event.seconds
        self._reports.add_forward(event, images, _first_waits(jobs, started_at) if event.stage.is_denoiser else ())


def _about(request: ResolvedRequest) -> dict[str, Any]:
    """Return what the task of a pipeline call knows of its requests, which have this in common."""
    return {
        "adapters": request.loras or None,
        "megapixels": request.megapixels,
        "steps": request.executed_steps,
    }


def _first_waits(jobs: Sequence[_ActiveJob], started_at: float) -> list[float]:
    """Return the seconds from arrival to a forward at `started_at`, for jobs of which it is the first."""
    first = [active for active in jobs if not active.stepped]
    for active in first:
        active.stepped = True
    return [max(started_at - active.job.arrived, 0.0) for active in dict.fromkeys(first)]


def _model(shape: Any) -> str:
    """Return the name of the model in a shape."""
    return str(shape[0])


def _shape(active: _ActiveJob) -> Hashable:
    """Return the shape of a job's images, by which the queue is fair: model, width and height."""
    request = active.job.request
    return (request.model, request.width, request.height)

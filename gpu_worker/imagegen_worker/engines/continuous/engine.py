"""The device thread with continuous batching: jobs join and leave the running batch at every forward."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from PIL.Image import Image

from imagegen_protocol.errors import GenerationFailedError, OutOfMemoryError
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, OnStep, Row, Sketch, StoppedError
from imagegen_worker.core.events import (
    CallDone,
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
from imagegen_worker.engines.continuous.hub import ForwardDone, ForwardSplit, Hub, HubEvent
from imagegen_worker.engines.continuous.limits import MemoryCaps, RowCosts
from imagegen_worker.engines.continuous.timing import Timer
from imagegen_worker.engines.static import MemoryHint, error_answer
from imagegen_worker.images.encoding import EncodePool, RawResult
from imagegen_worker.mailbox import Mailbox
from imagegen_worker.models.manager import ModelProvider, SingleModel

SMOOTHING = 0.2
"""Weight of the newest image in the mean time of an image."""

_log = logging.getLogger(__name__)


class StepwiseBackend(Protocol):
    """A loaded model whose forwards meet in a hub."""

    @property
    def timer(self) -> Timer:
        """Measures forwards on the device."""

    def session(self) -> AbstractContextManager[Any]:
        """Return a context that is held open around everything, on the device thread."""

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """Return the key of the pipeline calls that can make a request; None if it needs a call for each image.

        `make` takes rows with equal keys together, and makes the images that it makes of each alone.
        """

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """Whether the rows of a task's `unwanted` images, of this kind, are left out of its forwards."""

    def make(self, rows: Sequence[Row], on_step: OnStep) -> list[Image]:
        """Make one image for each row; the requests of several rows have the same `call_key`.

        Runs on a greenlet of a hub; its calls of the model are `rendezvous`. Raises `DeviceMemoryError` and
        `DeviceLostError`; passes on what is thrown into it at a call, and what `on_step` raises; anything else
        that it raises is taken for the fault of the request.
        """


@dataclass(slots=True, eq=False)
class _Member:
    """A job that has not ended, its tasks that run, and the images it has so far.

    Each image has a generator and a place in the batch of its own. `apart`: it was in a call for several images
    that failed, and each is to be made alone.
    """

    job: Job
    tasks: set[Task] = field(default_factory=set)
    images: dict[int, Image] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    begun: float | None = None
    stepped: bool = False
    apart: bool = False
    batch_size: int = 1


_Place = tuple[_Member, int]
"""A job and which of its images."""


@dataclass(slots=True, eq=False)
class _Share:
    """The images that one pipeline call makes: alike, of one job or of several that came together.

    `held`: how many of those that may run at a time are taken by it.
    """

    shape: Hashable
    places: tuple[_Place, ...]
    held: int


class ContinuousEngine:
    """Implements `Engine`. At most `max_batch_size` images run at a time; the rest wait their turn.

    `fits` is the size of an image (pixels) that is known to fit on the device; `caps` and `costs` are what was
    learned of the backend's forwards before.
    """

    def __init__(
        self,
        backend: StepwiseBackend,
        encoder: EncodePool,
        *,
        max_batch_size: int,
        clock: Callable[[], float] = time.monotonic,
        fits: tuple[int, int] | None = None,
        caps: MemoryCaps | None = None,
        costs: RowCosts | None = None,
        models: ModelProvider | None = None,
    ) -> None:
        self._models = models or SingleModel()
        self._backend = backend
        self._encoder = encoder
        self._max_batch_size = max_batch_size
        self._clock = clock
        self._memory_hint = MemoryHint(fits)
        self._caps = caps
        self._costs = costs
        self._members: dict[int, _Member] = {}
        self._line: AdmissionQueue[_Place] = AdmissionQueue()
        self._running: Counter[Hashable] = Counter()
        self._seconds_per_image: float | None = None
        self._stopping = False
        self._busy = False
        # What the next CallDone tells besides its own forward.
        self._unposted: ForwardDone | None = None
        self._images_out = 0
        self._beside_seconds = 0.0
        self._fallbacks: list[str] = []
        self._waits: list[float] = []

    def run(self, mailbox: Mailbox) -> None:
        """Work until `Stop`, then until what runs has ended. Raises `DeviceLostError` if the backend does."""
        with self._backend.session():
            self._run(mailbox)

    def _run(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._hub = Hub(observe=self._observe, timer=self._backend.timer, caps=self._caps, costs=self._costs)
        while True:
            while (command := mailbox.take(0)) is not None:
                self._obey(command)
            self._tend()
            self._admit()
            if self._hub.step():
                self._reap()
                continue
            if self._running:  # nothing waits for a forward, yet something was running: it has just ended
                self._reap()
                continue
            if self._stopping:
                return
            if not self._line and (command := mailbox.take(None)) is not None:
                self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Job():
                seeds = command.request.seeds
                member = self._members[command.number] = _Member(command, steps=[0] * len(seeds))
                for index in range(len(seeds)):
                    self._line.add(_shape(member), (member, index))
            case LoadModel():
                self._models.request(command.name)
            case Cancel():
                if (unwanted := self._members.get(command.number)) is not None:
                    self._drop(unwanted)
                    self._reap()
            case Stop():
                self._stopping = True

    # ---- in and out ----------------------------------------------------------------------------------------

    def _tend(self) -> None:
        """Have models loaded; forget the jobs for those that can't be."""
        if self._stopping:
            return
        waiting = list(dict.fromkeys(map(_model, self._line.shapes())))
        running = {_model(shape) for shape in self._running}
        for name in self._models.update(self._mailbox, running, waiting):
            for member in [each for each in self._members.values() if each.job.request.model == name]:
                self._drop(member)
            self._reap()

    def _may_begin(self, shape: Hashable) -> bool:
        return self._models.is_ready(_model(shape))

    def _admit(self) -> None:
        """Start images while there is room; those that are alike and start together share one pipeline call."""
        while shares := self._next_shares():
            for share in shares:
                self._begin(share)
            self._reap()

    def _next_shares(self) -> list[_Share]:
        """Take as many images as there is room for out of the line, and put them together."""
        alike: dict[Hashable, list[_Place]] = {}
        shapes: dict[Hashable, Hashable] = {}
        while not self._stopping and self._running.total() < self._max_batch_size:
            taken = self._line.take(self._running, self._may_begin)
            if taken is None:
                break
            shape, (member, index) = taken
            self._running[shape] += 1
            request = member.job.request
            shared = None if member.apart else self._backend.call_key(request)
            key = (member, index) if shared is None else shared
            shapes[key] = shape
            alike.setdefault(key, []).append((member, index))
        return [_Share(shapes[key], tuple(places), len(places)) for key, places in alike.items()]

    def _begin(self, share: _Share) -> None:
        rows = []
        for member, index in share.places:
            if member.begun is None:
                member.begun = self._clock()
                self._busy = True
                self._mailbox.post(Started((member.job.number,)))
            request = member.job.request
            rows.append(Row(request, request.seeds[index], member.job.preview and index == 0))
        work = partial(self._backend.make, rows, self._on_step(share))
        adapters = rows[0].request.loras or None
        task = self._hub.start(work, tag=share, adapters=adapters, images=len(rows))
        for member, _ in share.places:
            member.tasks.add(task)

    def _on_step(self, share: _Share) -> OnStep:
        """Return what tells of the steps of a call: to each job the mean over its images."""

        def on_step(step: int, steps: int, sketches: Sequence[Sketch | None] = ()) -> None:
            if (task := current_task()) is not None:
                self._leave(share, share.held - task.wanted)  # its next forward has no more rows than that
            for member, index in share.places:
                before = sum(member.steps) // len(member.steps)
                member.steps[index] = step
                mean = sum(member.steps) // len(member.steps)
                if mean != before and self._wants(member):
                    self._mailbox.post(Stepped((member.job.number,), mean, steps))
            for (member, _), sketch in zip(share.places, sketches, strict=False):  # none at all, or one for each
                if sketch is not None and self._wants(member):
                    self._encoder.sketch(member.job.number, sketch)

        return on_step

    def _leave(self, share: _Share, places: int) -> None:
        """Let others have places that a call has taken."""
        share.held -= places
        self._running[share.shape] -= places
        if not self._running[share.shape]:
            del self._running[share.shape]

    def _wants(self, member: _Member) -> bool:
        """Whether the job has not ended."""
        return self._members.get(member.job.number) is member

    def _reap(self) -> None:
        """Take the images of the tasks that have ended; hand finished jobs on."""
        while ended := self._hub.ended():
            for task in ended:
                share: _Share = task.tag
                self._leave(share, share.held)
                for member, _ in share.places:
                    member.tasks.discard(task)
                if task.error is None:
                    self._made(share, task)
                else:
                    self._failed(share, task.error)
        if self._busy and not self._running and not self._line:
            self._busy = False
            self._hub.settle(wait=True)
            self._post_call()
            self._mailbox.post(Idle())

    def _made(self, share: _Share, task: Task) -> None:
        """Keep the images of a call; hand on the jobs of which these were the last."""
        self._images_out += task.wanted
        seconds = task.seconds / task.wanted
        if self._seconds_per_image is None:
            self._seconds_per_image = seconds
        self._seconds_per_image += SMOOTHING * (seconds - self._seconds_per_image)
        self._memory_hint.record(share.places[0][0].job.request)
        for (member, index), image in zip(share.places, task.result, strict=True):
            member.images[index] = image
            member.batch_size = max(member.batch_size, task.company)
            if len(member.images) == len(member.job.request.seeds) and self._wants(member):
                self._finish(member)

    def _finish(self, member: _Member) -> None:
        """Hand on a job that has all of its images."""
        del self._members[member.job.number]
        request = member.job.request
        assert member.begun is not None
        self._encoder.submit(
            RawResult(
                number=member.job.number,
                images=tuple(member.images[index] for index in range(len(request.seeds))),
                request=request,
                batch_size=member.batch_size,
                queue_seconds=max(member.begun - member.job.arrived, 0.0),
                generation_seconds=self._clock() - member.begun,
            )
        )

    def _failed(self, share: _Share, error: BaseException) -> None:
        """A call has ended by an exception, and so has its job; if it had several images, they go one by one."""
        if isinstance(error, DeviceLostError) or not isinstance(error, Exception):
            raise error
        if len(share.places) == 1:
            self._end(share.places[0][0], error)
            return
        for member, index in reversed(share.places):
            if self._wants(member):
                member.apart = True
                member.steps[index] = 0
                self._line.add(share.shape, (member, index), first=True)
        if not isinstance(error, StoppedError):
            count = len(share.places)
            _log.warning("a call for %d images failed, and they are made one by one", count, exc_info=error)
            error.__traceback__ = None  # its frames hold tensors

    def _end(self, member: _Member, error: Exception) -> None:
        """Answer a job by the error in which its own call ended."""
        wanted = self._wants(member)
        self._drop(member)
        if not wanted or isinstance(error, StoppedError):
            return
        if isinstance(error, DeviceMemoryError):
            message = self._memory_hint.error_message(member.job.request)
            self._mailbox.post(Failed(member.job.number, OutOfMemoryError.code, message))
            return
        code, message = error_answer(error)
        if code == GenerationFailedError.code:
            _log.warning("job %d failed", member.job.number, exc_info=error)
        error.__traceback__ = None  # its frames hold tensors
        self._mailbox.post(Failed(member.job.number, code, message))

    def _drop(self, member: _Member) -> None:
        """Forget a job, and stop the calls that nobody else needs. They are among the ended, then."""
        if self._wants(member):
            del self._members[member.job.number]
        self._line.discard({(member, index) for index in range(len(member.job.request.seeds))})
        for task in list(member.tasks):
            places = task.tag.places
            if not any(self._wants(other) for other, _ in places):
                self._hub.cancel(task)
            elif self._backend.drops_rows(member.job.request):
                task.unwanted.update(at for at, (other, _) in enumerate(places) if other is member)

    # ---- what is told --------------------------------------------------------------------------------------

    def _observe(self, event: HubEvent) -> None:
        if isinstance(event, ForwardSplit):
            images = sum(task.images for task in event.tasks)
            self._mailbox.post(CallFailed(images, 0.0, split=event.max_rows > 0))
            return
        if event.stage.is_denoiser:
            if self._unposted is not None:
                self._post_call()
            self._unposted = event
            self._note_waits(event)
        else:
            self._beside_seconds += event.seconds
        if event.fallback:
            self._fallbacks.append(event.fallback)

    def _note_waits(self, event: ForwardDone) -> None:
        """Remember how long the jobs of which this was the first forward had waited for it."""
        began = self._clock() - event.seconds
        for member, _ in (place for task in event.tasks for place in task.tag.places):
            if not member.stepped:
                member.stepped = True
                self._waits.append(max(began - member.job.arrived, 0.0))

    def _post_call(self) -> None:
        """Tell of the last forward, with the images that came out since: they do so after it."""
        done = self._unposted
        if done is None and not self._images_out:
            return
        self._mailbox.post(
            CallDone(
                requests=1 if done is None else done.images,  # None: a pipeline without a denoiser
                images=self._images_out,
                steps=1,
                seconds=0.0 if done is None else done.seconds,
                seconds_per_image=self._seconds_per_image,
                rows=0 if done is None else done.rows,
                beside_seconds=self._beside_seconds,
                fallbacks=tuple(self._fallbacks),
                waits=tuple(self._waits),
                numbers=() if done is None else _jobs_of(done),
            )
        )
        self._unposted = None
        self._images_out = 0
        self._beside_seconds = 0.0
        self._fallbacks.clear()
        self._waits.clear()


def _jobs_of(event: ForwardDone) -> tuple[int, ...]:
    """Return the numbers of the jobs whose images shared a forward, each once."""
    return tuple(dict.fromkeys(member.job.number for task in event.tasks for member, _ in task.tag.places))


def _model(shape: Any) -> str:
    """Return the model of images of this shape."""
    return str(shape[0])


def _shape(member: _Member) -> Hashable:
    """Return what images must have in common to be one crowd in the line."""
    request = member.job.request
    return (request.model, request.width, request.height)

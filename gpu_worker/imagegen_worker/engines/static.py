"""Static batching: jobs of a batch share a call of the backend if their call keys are equal."""

import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from imagegen_protocol.errors import GenerationFailedError, InvalidRequestError, OutOfMemoryError
from imagegen_worker.backends import (
    DeviceLostError,
    DeviceMemoryError,
    GeneratedImage,
    ImageGenerator,
    Row,
    Sketch,
    StoppedError,
)
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.core.batching import BatchFormer
from imagegen_worker.core.cost_meter import CostMeter
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
from imagegen_worker.images.encoding import EncodePool, RawResult
from imagegen_worker.mailbox import Mailbox
from imagegen_worker.models.manager import ModelProvider, SingleModel


class Engine(Protocol):
    """Runs jobs on the device thread.

    For each job that is not cancelled, `run` posts `Started`, any number of `Stepped`, and finally one `Finished`
    or `Failed`.
    """

    def run(self, mailbox: Mailbox) -> None:
        """Execute the commands of the mailbox until `Stop`. An exception ends the process."""


class MemoryHint:
    """The largest image that fitted into device memory, as (width, height) in pixels, for error messages."""

    def __init__(self, largest: tuple[int, int] | None = None) -> None:
        self._largest = largest

    def record(self, request: ResolvedRequest) -> None:
        """Record that an image of this request's size fits into memory; only the largest size is kept."""
        if self._largest is None or request.width * request.height > self._largest[0] * self._largest[1]:
            self._largest = (request.width, request.height)

    def error_message(self, request: ResolvedRequest) -> str:
        """Return the error message for a request of which not even one image fits."""
        message = (
            f"one image of {request.width}x{request.height} pixels does not fit into device memory, even alone"
        )
        if self._largest is None or self._largest[0] * self._largest[1] >= request.width * request.height:
            return message
        return f"{message}; {self._largest[0]}x{self._largest[1]} pixels fitted"


def error_answer(error: Exception) -> tuple[str, str]:
    """Return the error code and message for an exception that a backend raised for one request."""
    if isinstance(error, InvalidRequestError):
        return error.code, error.message
    return GenerationFailedError.code, f"{type(error).__name__}: {error}"


@dataclass(slots=True)
class _Member:
    """A job of the running batch, and its images by the index of their seeds."""

    job: Job
    images: dict[int, GeneratedImage] = field(default_factory=dict)
    batch_size: int = 1
    ended: bool = False
    """Whether the job was cancelled, failed or finished."""


_Rows = list[tuple[_Member, int]]
"""Images to generate: each a member and the index of one of its seeds."""


class StaticEngine:
    """Collects similar jobs in a batch and runs it by one call of the backend for each `call_key` in it.

    A call has at most `max_batch_size` images, and a job waits at most `max_batch_wait` seconds for others.
    `fits` is the size of an image (pixels) that is known to fit into device memory.
    """

    def __init__(
        self,
        backend: ImageGenerator,
        encoder: EncodePool,
        *,
        max_batch_size: int,
        max_batch_wait: float,
        clock: Callable[[], float] = time.monotonic,
        fits: tuple[int, int] | None = None,
        models: ModelProvider | None = None,
    ) -> None:
        self._models = models or SingleModel()
        self._backend = backend
        self._encoder = encoder
        self._max_rows = max_batch_size
        self._former = BatchFormer(max_batch_size, max_batch_wait)
        self._clock = clock
        self._memory_hint = MemoryHint(fits)
        self._meter = CostMeter()
        self._members: list[_Member] = []
        self._started_at = 0.0
        self._stopping = False

    def run(self, mailbox: Mailbox) -> None:
        """See `Engine.run`. Raises `DeviceLostError` if the backend does."""
        while True:
            self._handle_commands(mailbox)
            if self._stopping:
                return
            for name in self._models.update(mailbox, (), self._former.models()):
                self._former.discard(name)
            now = self._clock()
            if batch := self._former.take(now, self._models.is_ready):
                self._run_batch(mailbox, batch)
                continue
            times = (self._former.next_deadline(self._models.is_ready), self._models.next_deadline())
            deadline = min((time for time in times if time is not None), default=None)
            command = mailbox.take(None if deadline is None else deadline - now)
            if command is not None:
                self._handle(command)

    def _handle_commands(self, mailbox: Mailbox) -> None:
        """Execute the queued commands."""
        while (command := mailbox.take(0)) is not None:
            self._handle(command)

    def _handle(self, command: Command) -> None:
        match command:
            case Job():
                self._former.add(command)
            case LoadModel():
                self._models.request(command.name)
            case Cancel():
                if not self._former.remove(command.number):
                    for member in self._members:
                        member.ended |= member.job.number == command.number
            case Stop():
                self._stopping = True

    def _run_batch(self, mailbox: Mailbox, batch: tuple[Job, ...]) -> None:
        self._started_at = self._clock()
        self._members = [_Member(job) for job in batch]
        mailbox.post(Started(tuple(job.number for job in batch)))
        for job in batch:
            self._meter.start(job.number, job.request)
        rows = [(member, index) for member in self._members for index in range(len(member.job.request.seeds))]
        for call in self._calls(rows):
            self._generate(mailbox, call)
        for job in batch:
            self._meter.discard(job.number)
        self._members = []
        mailbox.post(Idle())

    def _calls(self, rows: _Rows) -> list[_Rows]:
        """Divide the images of a batch into those of one backend call each, of at most `max_batch_size` images."""
        if len(rows) == 1 or self._max_rows == 1:
            return [[row] for row in rows]
        groups: dict[Hashable, _Rows] = {}
        for member, index in rows:
            key = self._backend.call_key(member.job.request)
            groups.setdefault((member.job.number, index) if key is None else key, []).append((member, index))
        return [
            group[first : first + self._max_rows]
            for group in groups.values()
            for first in range(0, len(group), self._max_rows)
        ]

    def _generate(self, mailbox: Mailbox, rows: _Rows) -> None:
        """Generate these images in one call, or in several if it fails; finish the jobs that are complete."""
        self._handle_commands(mailbox)  # jobs may have been cancelled meanwhile
        rows = [row for row in rows if not row[0].ended]
        if not rows:
            return
        members = list({member.job.number: member for member, _ in rows}.values())

        def on_step(step: int, steps: int, sketches: Sequence[Sketch | None] = ()) -> None:
            self._handle_commands(mailbox)
            active = tuple(member.job.number for member in members if not member.ended)
            if not active:
                raise StoppedError
            mailbox.post(Stepped(active, step, steps))
            for (member, index), sketch in zip(rows, sketches, strict=False):
                if sketch is not None and index == 0 and not member.ended:
                    self._encoder.sketch(member.job.number, sketch)

        started = self._clock()
        requests = [
            Row(member.job.request, member.job.request.seeds[index], member.job.preview and index == 0)
            for member, index in rows
        ]
        failure: Exception | None = None
        try:
            images = self._backend.generate(requests, on_step)
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - every request must get an answer
            failure = error
        if failure is not None:  # outside of the handler, which keeps the frames of the error
            self._failed(mailbox, rows, members, failure, self._clock() - started)
            return
        seconds = self._clock() - started
        self._meter.add_call(Counter(member.job.number for member, _ in rows), seconds)
        mailbox.post(
            CallDone(
                requests=len(members),
                images=len(rows),
                steps=members[0].job.request.num_inference_steps,
                seconds=seconds,
                seconds_per_image=self._backend.seconds_per_image,
                waits=tuple(max(started - member.job.arrived, 0.0) for member in members if not member.images),
                numbers=tuple(member.job.number for member in members),
            )
        )
        for (member, index), image in zip(rows, images, strict=True):
            member.images[index] = image
            self._memory_hint.record(member.job.request)
            member.batch_size = max(member.batch_size, len(members))
        for member in members:
            self._finish_if_complete(mailbox, member)

    def _failed(
        self, mailbox: Mailbox, rows: _Rows, members: list[_Member], error: Exception, seconds: float
    ) -> None:
        """Handle the error of a call: retry its rows in halves or job by job, or fail its job."""
        release_frames(error)
        if isinstance(error, StoppedError):
            mailbox.post(CallFailed(len(rows), seconds, split=False, stopped=True))
        elif isinstance(error, DeviceMemoryError):
            self._split(mailbox, rows, seconds)
        else:
            self._retry_alone(mailbox, rows, members, error, seconds)

    def _split(self, mailbox: Mailbox, rows: _Rows, seconds: float) -> None:
        """Retry the rows of a call that ran out of memory in two calls."""
        mailbox.post(CallFailed(len(rows), seconds, split=len(rows) > 1))
        if len(rows) > 1:
            middle = len(rows) // 2
            self._generate(mailbox, rows[:middle])
            self._generate(mailbox, rows[middle:])
            return
        member = rows[0][0]
        self._fail(mailbox, member, OutOfMemoryError.code, self._memory_hint.error_message(member.job.request))

    def _retry_alone(
        self, mailbox: Mailbox, rows: _Rows, members: list[_Member], error: Exception, seconds: float
    ) -> None:
        """Retry each job of a failed call in a call of its own, so that only the faulty job fails."""
        mailbox.post(CallFailed(len(rows), seconds, split=False))
        if len(members) == 1:
            self._fail(mailbox, members[0], *error_answer(error))
            return
        for alone in members:
            self._generate(mailbox, [row for row in rows if row[0] is alone])

    def _fail(self, mailbox: Mailbox, member: _Member, code: str, message: str) -> None:
        member.ended = True
        mailbox.post(Failed(member.job.number, code, message))

    def _finish_if_complete(self, mailbox: Mailbox, member: _Member) -> None:
        """Send the images of a job to the encoders if they are complete and the job has not ended."""
        request = member.job.request
        seeds = request.seeds
        if member.ended or len(member.images) < len(seeds):
            return
        member.ended = True
        if (measured := self._meter.finish(member.job.number)) is not None:
            mailbox.post(measured)
        self._encoder.submit(
            RawResult(
                number=member.job.number,
                images=tuple(member.images[index] for index in range(len(seeds))),
                request=replace(request, warnings=(*request.warnings, *self._backend.warnings(request))),
                batch_size=member.batch_size,
                queue_seconds=max(self._started_at - member.job.arrived, 0.0),
                generation_seconds=self._clock() - self._started_at,
            )
        )

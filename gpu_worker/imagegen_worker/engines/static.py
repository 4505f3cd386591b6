"""The device thread: takes jobs from the mailbox, makes calls of the backend, posts what happens."""

import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from PIL.Image import Image

from imagegen_protocol.errors import GenerationFailedError, InvalidRequestError, OutOfMemoryError
from imagegen_worker.backends import DeviceLostError, DeviceMemoryError, Maker, Row, Sketch, StoppedError
from imagegen_worker.core.batching import BatchFormer
from imagegen_worker.core.events import (
    CallDone,
    CallFailed,
    Cancel,
    Command,
    Failed,
    Idle,
    Job,
    Load,
    Started,
    Stepped,
    Stop,
)
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.images.encoding import EncodePool, RawResult
from imagegen_worker.mailbox import Mailbox
from imagegen_worker.models.manager import AlwaysReady, Models


class Engine(Protocol):
    """The seam between the sockets and the device.

    `run` takes `Job`, `Cancel` and `Stop` from the mailbox, and posts for each job that was not cancelled
    `Started`, any number of `Stepped`, and at last one `Finished` or `Failed`.
    """

    def run(self, mailbox: Mailbox) -> None:
        """Work until `Stop`. Whatever it raises ends the process."""


class MemoryHint:
    """The largest image that has fitted into device memory, as (width, height) in pixels, for error messages."""

    def __init__(self, largest: tuple[int, int] | None = None) -> None:
        self._largest = largest

    def note(self, request: ResolvedRequest) -> None:
        """An image of this request was made."""
        if self._largest is None or request.width * request.height > self._largest[0] * self._largest[1]:
            self._largest = (request.width, request.height)

    def too_big(self, request: ResolvedRequest) -> str:
        """Return what to tell of a request of which not even one image fits."""
        message = f"one image of {request.width}x{request.height} pixels does not fit on the device, even alone"
        if self._largest is None or self._largest[0] * self._largest[1] >= request.width * request.height:
            return message
        return f"{message}; {self._largest[0]}x{self._largest[1]} pixels did fit"


def blame(error: Exception) -> tuple[str, str]:
    """Return code and message of what a backend raised for one request."""
    if isinstance(error, InvalidRequestError):
        return error.code, error.message
    return GenerationFailedError.code, f"{type(error).__name__}: {error}"


@dataclass(slots=True)
class _Member:
    """A job in the running batch, and the images it has so far."""

    job: Job
    images: dict[int, Image] = field(default_factory=dict)
    batch_size: int = 1
    over: bool = False
    """Cancelled, failed, or finished: nothing more is made for it."""


_Rows = list[tuple[_Member, int]]
"""Images to make: a member and the index of one of its seeds."""


class StaticEngine:
    """Collects similar jobs in a batch and runs it by one call of the backend for each `call_key` in it.

    A call has at most `max_batch_size` images, and a job waits at most `max_batch_wait` seconds for others.
    `fits` is the size of an image (pixels) that is known to fit on the device.
    """

    def __init__(
        self,
        backend: Maker,
        encoder: EncodePool,
        *,
        max_batch_size: int,
        max_batch_wait: float,
        clock: Callable[[], float] = time.monotonic,
        fits: tuple[int, int] | None = None,
        models: Models | None = None,
    ) -> None:
        self._models = models or AlwaysReady()
        self._backend = backend
        self._encoder = encoder
        self._max_rows = max_batch_size
        self._former = BatchFormer(max_batch_size, max_batch_wait)
        self._clock = clock
        self._memory_hint = MemoryHint(fits)
        self._members: list[_Member] = []
        self._begun = 0.0
        self._stopping = False

    def run(self, mailbox: Mailbox) -> None:
        """Work until `Stop`. Raises `DeviceLostError` if the backend does."""
        while True:
            self._absorb(mailbox)
            if self._stopping:
                return
            for name in self._models.tend(mailbox, (), self._former.models()):
                self._former.discard(name)
            now = self._clock()
            if batch := self._former.take(now, self._models.ready):
                self._run_batch(mailbox, batch)
                continue
            times = (self._former.next_deadline(self._models.ready), self._models.due_at())
            deadline = min((time for time in times if time is not None), default=None)
            command = mailbox.take(None if deadline is None else deadline - now)
            if command is not None:
                self._obey(command)

    def _absorb(self, mailbox: Mailbox) -> None:
        """Obey the commands that wait."""
        while (command := mailbox.take(0)) is not None:
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case Job():
                self._former.add(command)
            case Load():
                self._models.want(command.name)
            case Cancel():
                if not self._former.remove(command.number):
                    for member in self._members:
                        member.over |= member.job.number == command.number
            case Stop():
                self._stopping = True

    def _run_batch(self, mailbox: Mailbox, batch: tuple[Job, ...]) -> None:
        self._begun = self._clock()
        self._members = [_Member(job) for job in batch]
        mailbox.post(Started(tuple(job.number for job in batch)))
        rows = [(member, index) for member in self._members for index in range(len(member.job.request.seeds))]
        for call in self._calls(rows):
            self._make(mailbox, call)
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

    def _make(self, mailbox: Mailbox, rows: _Rows) -> None:
        """Make these images in one call, or in several if one is too many; hand finished jobs on."""
        self._absorb(mailbox)  # a call that is over already is cheaper not begun
        rows = [row for row in rows if not row[0].over]
        if not rows:
            return
        members = list({member.job.number: member for member, _ in rows}.values())

        def on_step(step: int, steps: int, sketches: Sequence[Sketch | None] = ()) -> None:
            self._absorb(mailbox)
            wanted = tuple(member.job.number for member in members if not member.over)
            if not wanted:
                raise StoppedError
            mailbox.post(Stepped(wanted, step, steps))
            for (member, index), sketch in zip(rows, sketches, strict=False):
                if sketch is not None and index == 0 and not member.over:
                    self._encoder.sketch(member.job.number, sketch)

        begun = self._clock()
        requests = [
            Row(member.job.request, member.job.request.seeds[index], member.job.preview and index == 0)
            for member, index in rows
        ]
        try:
            images = self._backend.generate(requests, on_step)
        except StoppedError:
            mailbox.post(CallFailed(len(rows), self._clock() - begun, split=False, stopped=True))
        except DeviceLostError:
            raise
        except DeviceMemoryError:
            self._halve(mailbox, rows, self._clock() - begun)
        except Exception as error:  # noqa: BLE001 - whatever a pipeline raises ends in an answer
            self._isolate(mailbox, rows, members, error, self._clock() - begun)
        else:
            mailbox.post(
                CallDone(
                    requests=len(members),
                    images=len(rows),
                    steps=members[0].job.request.num_inference_steps,
                    seconds=self._clock() - begun,
                    seconds_per_image=self._backend.seconds_per_image,
                    waits=tuple(max(begun - member.job.arrived, 0.0) for member in members if not member.images),
                    numbers=tuple(member.job.number for member in members),
                )
            )
            for (member, index), image in zip(rows, images, strict=True):
                member.images[index] = image
                self._memory_hint.note(member.job.request)
                member.batch_size = max(member.batch_size, len(members))
            for member in members:
                self._hand_on(member)

    def _halve(self, mailbox: Mailbox, rows: _Rows, seconds: float) -> None:
        """Out of memory: nothing is lost, the rows are made again in two calls."""
        mailbox.post(CallFailed(len(rows), seconds, split=len(rows) > 1))
        if len(rows) > 1:
            middle = len(rows) // 2
            self._make(mailbox, rows[:middle])
            self._make(mailbox, rows[middle:])
            return
        member = rows[0][0]
        self._fail(mailbox, member, OutOfMemoryError.code, self._memory_hint.too_big(member.job.request))

    def _isolate(
        self, mailbox: Mailbox, rows: _Rows, members: list[_Member], error: Exception, seconds: float
    ) -> None:
        """Something else was raised: each job is tried alone, so that only the guilty one fails."""
        mailbox.post(CallFailed(len(rows), seconds, split=False))
        if len(members) == 1:
            self._fail(mailbox, members[0], *blame(error))
            return
        for alone in members:
            self._make(mailbox, [row for row in rows if row[0] is alone])

    def _fail(self, mailbox: Mailbox, member: _Member, code: str, message: str) -> None:
        member.over = True
        mailbox.post(Failed(member.job.number, code, message))

    def _hand_on(self, member: _Member) -> None:
        """Give a job to the encoders if all its images are there and it is still wanted."""
        seeds = member.job.request.seeds
        if member.over or len(member.images) < len(seeds):
            return
        member.over = True
        self._encoder.submit(
            RawResult(
                number=member.job.number,
                images=tuple(member.images[index] for index in range(len(seeds))),
                request=member.job.request,
                batch_size=member.batch_size,
                queue_seconds=max(self._begun - member.job.arrived, 0.0),
                generation_seconds=self._clock() - self._begun,
            )
        )

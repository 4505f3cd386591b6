"""Ways to serve the same requests. All run the worker's own engines and backends, on this thread."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL.Image import Image

from benchmarks.batching.traffic import Arrival
from imagegen_worker.backends import Row, completed, ignore_steps
from imagegen_worker.backends.diffusers import DiffusersBackend, StepwiseDiffusers
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.events import CallDone, CallFailed, Command, EngineEvent, Failed, Job, Stop
from imagegen_worker.core.model import Model
from imagegen_worker.engines.continuous import ContinuousEngine
from imagegen_worker.engines.static import Engine, StaticEngine
from imagegen_worker.images.encoding import EncodePool, RawResult
from imagegen_worker.mailbox import EngineDied, Mailbox

WAITS = (0.05, 0.5, 5.0)
"""Seconds for which static batching waits for further requests."""
ON_CPU = LoadOptions(device="cpu", threads=1)

Serve = Callable[[EncodePool], Engine]


@dataclass(slots=True)
class Outcome:
    """What became of a run: by request its seconds from arrival to the image, and the image itself."""

    latencies: dict[int, float] = field(default_factory=dict)
    images: dict[int, Image] = field(default_factory=dict)
    seconds: float = 0.0
    """From the first arrival to the last image."""
    calls: list[CallDone] = field(default_factory=list)
    splits: int = 0
    """Forwards that ran out of memory and were run again in parts."""


class Schedule(Mailbox):
    """Gives an engine each request at its time and then `Stop`; nothing else runs beside the engine.

    First comes `warm_up`, at once; the clock starts when the engine has nothing more to do. So what is measured is
    a service that has run for a while. Its requests have negative numbers.
    """

    def __init__(
        self, arrivals: Sequence[Arrival], warm_up: Sequence[Arrival], warmed_up: Callable[[], object] = int
    ) -> None:
        super().__init__()
        self._warmed_up = warmed_up
        self._arrivals = list(reversed(arrivals))
        self._warm_up = list(warm_up)
        self._number = 0
        self.begun: float | None = None
        self.calls: list[CallDone] = []
        self.splits = 0

    def take(self, timeout: float | None) -> Command | None:
        """See `Mailbox.take`."""
        if self._warm_up:
            return Job(-len(self._warm_up), self._warm_up.pop(0).request, time.monotonic())
        if self.begun is None:
            if timeout is not None:
                time.sleep(max(timeout, 0))
                return None
            self._warmed_up()
            self.begun = time.monotonic()
        if not self._arrivals:
            if timeout is None:
                return Stop()
            if timeout > 0:
                time.sleep(timeout)
            return None
        at = self.begun + self._arrivals[-1].at
        wait = at - time.monotonic()
        if timeout is not None and wait > timeout:
            if timeout > 0:
                time.sleep(timeout)
            return None
        if wait > 0:
            time.sleep(wait)
        self._number += 1
        return Job(self._number - 1, self._arrivals.pop().request, at)

    def post(self, event: EngineEvent | EngineDied) -> None:
        """See `Mailbox.post`."""
        super().post(event)
        if isinstance(event, Failed):
            raise RuntimeError(f"request {event.number} failed: {event.message}")
        if isinstance(event, CallFailed) and event.split:
            self.splits += 1
        if isinstance(event, CallDone) and self.begun is not None:
            self.calls.append(event)


class Finish(EncodePool):
    """Takes the time where the device hands an image on; with `encode` the image goes on to be made a PNG."""

    def __init__(self, arrivals: Sequence[Arrival], schedule: Schedule, encode: bool) -> None:
        super().__init__(schedule)
        self._encode = encode
        self._arrivals = arrivals
        self._schedule = schedule
        self.outcome = Outcome()

    def submit(self, raw: RawResult) -> None:
        """See `EncodePool.submit`."""
        if self._schedule.begun is None:
            return
        now = time.monotonic() - self._schedule.begun
        self.outcome.seconds = now
        self.outcome.latencies[raw.number] = now - self._arrivals[raw.number].at
        self.outcome.images[raw.number] = completed(raw.images[0])
        if self._encode:
            super().submit(raw)


def run(
    serve: Serve,
    arrivals: Sequence[Arrival],
    warm_up: Sequence[Arrival] = (),
    *,
    encode: bool = False,
    warmed_up: Callable[[], object] = int,
) -> Outcome:
    """Serve these requests from the first to the last. Raises RuntimeError if one fails.

    `encode`: make PNGs of the images on other threads, as a worker does. `warmed_up` is called just before the
    first request arrives.
    """
    schedule = Schedule(arrivals, warm_up, warmed_up)
    finish = Finish(arrivals, schedule, encode)
    try:
        serve(finish).run(schedule)
    finally:
        finish.close()
        schedule.close()
    finish.outcome.calls = schedule.calls
    finish.outcome.splits = schedule.splits
    return finish.outcome


class OneByOne:
    """Implements `Engine` by the stock pipeline alone: the next request is looked at when the last one is done."""

    def __init__(self, backend: DiffusersBackend, encoder: EncodePool) -> None:
        self._backend = backend
        self._encoder = encoder

    def run(self, mailbox: Mailbox) -> None:
        """Work until `Stop`."""
        while isinstance(job := mailbox.take(None), Job):
            begun = time.monotonic()
            images = self._backend.generate([Row(job.request, job.request.seeds[0])], ignore_steps)
            seconds = time.monotonic() - begun
            self._encoder.submit(
                RawResult(
                    number=job.number,
                    images=tuple(images),
                    request=job.request,
                    batch_size=1,
                    queue_seconds=begun - job.arrived,
                    generation_seconds=seconds,
                )
            )


@dataclass(slots=True)
class Field:
    """The contenders for one model, by name; each model is loaded twice, so that neither way touches the other."""

    model: Model
    stock: DiffusersBackend
    stepwise: StepwiseDiffusers
    contenders: dict[str, Serve]


@contextmanager
def contenders(
    folder: Path,
    *,
    options: LoadOptions = ON_CPU,
    max_batch_size: int = 8,
    waits: Sequence[float] = WAITS,
) -> Iterator[Field]:
    """Load a model's folder and warm up both ways of running it."""
    stock = DiffusersBackend(folder, folder.name, options, max_batch_size=max_batch_size)
    stepwise = StepwiseDiffusers(folder, folder.name, options, max_batch_size=max_batch_size)
    model = stock.warm_up().models[0]
    stepwise.warm_up()

    def static(wait: float) -> Serve:
        sizes: dict[str, Any] = {"max_batch_size": max_batch_size, "max_batch_wait": wait}
        return lambda encoder: StaticEngine(stock, encoder, **sizes)

    ways: dict[str, Serve] = {
        "continuous": lambda encoder: ContinuousEngine(stepwise, encoder, max_batch_size=max_batch_size),
        "one by one": lambda encoder: OneByOne(stock, encoder),
    }
    ways |= {f"static {wait:g} s": static(wait) for wait in waits}
    try:
        yield Field(model, stock, stepwise, ways)
    finally:
        stepwise.close()
        stock.close()

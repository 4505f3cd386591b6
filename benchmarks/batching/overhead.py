"""What the engine costs a request that is alone: seconds through it, over seconds of the stock pipeline's call."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.batching.contenders import Field
from benchmarks.batching.traffic import Arrival, burst
from imagegen_worker.backends import Row, completed
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.core.events import Command, Job, Stop
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous import ContinuousEngine
from imagegen_worker.images.encoding import EncodePool, RawResult
from imagegen_worker.mailbox import Mailbox


@dataclass(slots=True)
class Overhead:
    """Seconds by pair of calls with the same request, and how many of them gave images equal in every bit."""

    engine: list[float]
    stock: list[float]
    equal: int

    @property
    def ratio(self) -> float:
        """The median over the pairs of engine over stock: what slows the machine slows both of a pair."""
        return statistics.median(ours / theirs for ours, theirs in zip(self.engine, self.stock, strict=True))


class _Pairs(Mailbox):
    """Hands the engine a request whenever it is idle; the stock call makes the same image before or after it."""

    def __init__(self, requests: list[ResolvedRequest], loaded: LoadedPipeline) -> None:
        super().__init__()
        self._requests = requests
        self._loaded = loaded
        self._at = -1
        self._begun = 0.0
        self._image: Any = None
        self._theirs: Any = None
        self.result = Overhead([], [], 0)

    def take(self, timeout: float | None) -> Command | None:
        """See `Mailbox.take`."""
        if timeout is not None:
            return None
        if self._at >= 0:
            if self._at % 2:
                self._stock(self._requests[self._at])
            self.result.equal += self._image.tobytes() == self._theirs.tobytes()
        self._at += 1
        if self._at == len(self._requests):
            return Stop()
        request = self._requests[self._at]
        if not self._at % 2:
            self._stock(request)
        self._begun = time.perf_counter()
        return Job(self._at, request, time.monotonic())

    def made(self, raw: RawResult) -> None:
        """Take the engine's image."""
        self.result.engine.append(time.perf_counter() - self._begun)
        self._image = completed(raw.images[0])

    def _stock(self, request: ResolvedRequest) -> None:
        begun = time.perf_counter()
        generator = torch.Generator("cpu").manual_seed(request.seeds[0])
        arguments = {**self._loaded.arguments([Row(request, request.seeds[0])]), "output_type": "pil"}
        self._theirs = self._loaded.pipeline(generator=generator, **arguments).images[0]
        self.result.stock.append(time.perf_counter() - begun)


class _Hand(EncodePool):
    def __init__(self, pairs: _Pairs) -> None:
        self.submit = pairs.made  # type: ignore[method-assign]


def measure(field: Field, pairs: int) -> Overhead:
    """Make so many images both ways, taking turns at going first."""
    requests = [arrival.request for arrival in _alike(field, pairs + 2)]
    assert field.stock._loaded is not None
    mailbox = _Pairs(requests, field.stock._loaded)
    try:
        ContinuousEngine(field.stepwise, _Hand(mailbox), max_batch_size=8).run(mailbox)
    finally:
        mailbox.close()
    result = mailbox.result
    result.equal -= 2
    # The first two pay for what is set up lazily.
    return Overhead(result.engine[2:], result.stock[2:], result.equal)


def _alike(field: Field, count: int) -> list[Arrival]:
    return burst(field.model, count, alike=True, seed=7)

"""A pipeline on a device, run both ways, with its forwards timed where they happen and its memory watched."""

import functools
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from PIL.Image import Image

from benchmarks.batching.contenders import Outcome, run
from benchmarks.batching.traffic import Arrival
from imagegen_worker.backends import OnStep, Row
from imagegen_worker.backends.diffusers.layouts import count_rows
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous import ContinuousEngine
from imagegen_worker.engines.continuous.timing import Timer
from imagegen_worker.engines.static import Engine
from imagegen_worker.images.encoding import EncodePool

GIB = 2**30


class Forwards:
    """Takes the time of every forward of a pipeline's models, with CUDA events where there are any.

    `most_rows` makes the denoiser run out of memory beyond so many rows, as a card would.
    """

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._marks: list[tuple[Any, Any]] = []
        self.most_rows: int | None = None
        for name, module in pipeline.components.items():
            if not isinstance(module, torch.nn.Module):
                continue
            method = "decode" if name == "vae" else "forward"
            denoises = name in ("unet", "transformer")
            setattr(module, method, self._timed(getattr(module, method), denoises))

    def start(self) -> None:
        """Forget what was timed so far."""
        self._marks.clear()

    def idle(self) -> float:
        """Return the share of the time from the first forward to the end of the last that was in none of them.

        The scheduler's own few operations count as idle too.
        """
        if not self._marks:
            return 0.0
        if self._cuda:
            torch.cuda.synchronize()
        whole = self._seconds(self._marks[0][0], self._marks[-1][1])
        busy = sum(self._seconds(begun, ended) for begun, ended in self._marks)
        return max(1 - busy / whole, 0.0) if whole else 0.0

    def _timed(self, forward: Callable[..., Any], denoises: bool) -> Callable[..., Any]:
        @functools.wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if denoises and self.most_rows is not None:
                rows = count_rows((*args, *kwargs.values()))
                if rows > self.most_rows:
                    raise torch.OutOfMemoryError(f"{rows} rows do not fit")
            begun = self._mark()
            output = forward(*args, **kwargs)
            self._marks.append((begun, self._mark()))
            return output

        return timed

    def _mark(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begun: Any, ended: Any) -> float:
        return float(begun.elapsed_time(ended)) / 1000 if self._cuda else float(ended - begun)


class Served:
    """Implements `StepwiseBackend` for a pipeline that is in memory already."""

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any]) -> None:
        self._batcher = PipelineBatcher(pipeline)
        self._arguments = arguments

    @property
    def timer(self) -> Timer:
        """Measures forwards on the device."""
        return self._batcher.timer

    def session(self) -> AbstractContextManager[Any]:
        """Return a context that is held open around everything, on the device thread."""
        return self._batcher.session()

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `StepwiseBackend.call_key`."""
        return request.batch_key

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """See `StepwiseBackend.drops_rows`."""
        return False

    def generate(self, rows: Sequence[Row], on_step: OnStep) -> list[Image]:
        """Generate one image for each row; see `StepwiseBackend.generate`."""
        seeds = [row.seed for row in rows]
        return self._batcher.generate_all(call_of(self._arguments, rows), seeds, on_step)


class OnDevice:
    """A model, its forwards timed, and both ways of running it. The stock call goes through untouched.

    Both ways share the models: called from outside of a task, the wrapped forwards are what they were.
    """

    def __init__(self, pipeline: Any, arguments: Mapping[str, Any], device: torch.device) -> None:
        pipeline.set_progress_bar_config(disable=True)
        self._pipeline = pipeline
        self._arguments = arguments
        self._device = device
        self.forwards = Forwards(pipeline, device)
        self._served = Served(pipeline, arguments)

    def stock(self, arrivals: Sequence[Arrival], together: int) -> tuple[float, list[Image]]:
        """Make the images by calls for `together` of them; return seconds and images."""
        images: list[Image] = []
        begun = time.perf_counter()
        for first in range(0, len(arrivals), together):
            rows = [Row(each.request, each.request.seeds[0]) for each in arrivals[first : first + together]]
            generators = [torch.Generator("cpu").manual_seed(row.seed) for row in rows]
            images += self._pipeline(**call_of(self._arguments, rows), generator=generators).images
        return time.perf_counter() - begun, images

    def engine(self, arrivals: Sequence[Arrival], together: int) -> Outcome:
        """Make the images by the continuous engine, `together` of them at a time at most.

        As many go before, unmeasured: it learns what a forward costs, as one that has run for a while has.
        """

        def serve(encoder: EncodePool) -> Engine:
            return ContinuousEngine(self._served, encoder, max_batch_size=together)

        return run(serve, arrivals, arrivals[:together], encode=True)

    def watched(self, work: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """Do some work; return its result, the idle share, and the peak of memory in GiB (None: no GPU)."""
        self.forwards.start()
        if self._device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats(self._device)
        result = work()
        peak = torch.cuda.max_memory_allocated(self._device) / GIB if self._device.type == "cuda" else None
        return result, self.forwards.idle(), peak


def call_of(arguments: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call for alike rows, without generators."""
    request = rows[0].request
    prompts = [row.request.prompt for row in rows]
    return {
        **arguments,
        "prompt": prompts if len(rows) > 1 else prompts[0],
        "num_inference_steps": request.num_inference_steps,
        "width": request.width,
        "height": request.height,
    }

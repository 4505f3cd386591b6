"""A pipeline whose requests share forwards, as the continuous engine wants it."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imagegen_worker.backends import OnStep, Row, StartError, nobody_watches
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.rendezvous import Rendezvous
from imagegen_worker.config import LoadOptions
from imagegen_worker.continuous.hub import Hub
from imagegen_worker.continuous.limits import MemoryCaps, RowCosts
from imagegen_worker.continuous.timing import Timer
from imagegen_worker.core.events import Warm

if TYPE_CHECKING:
    from PIL.Image import Image

_SHORT = 4
"""Steps of the images with which row counts are warmed up."""


class StepwiseDiffusers:
    """Implements `StepwiseBackend`. `max_batch_size` images run at a time at most."""

    def __init__(self, folder: Path, name: str, options: LoadOptions, *, max_batch_size: int) -> None:
        self._source = (folder, name, options)
        self._options = options
        self._max_batch_size = max_batch_size
        self._loaded: LoadedPipeline | None = None
        self._meeting: Rendezvous | None = None
        self.caps = MemoryCaps()
        self.costs = RowCosts()
        """Both learn from the first images already: an engine is to go on with them."""

    @property
    def timer(self) -> Timer:
        """Measures forwards on the device."""
        return self._rendezvous.timer

    def warm_up(self) -> Warm:
        """Load the pipeline, make a first image, then as many together as will run. Raises `StartError`."""
        self._loaded = LoadedPipeline(*self._source)
        # Two rows an image, where guidance makes two of one.
        rows = 2 * self._max_batch_size if self._options.deterministic else None
        adapters = self._loaded.adapters
        activate = None if adapters is None else adapters.activate
        self._meeting = Rendezvous(self._loaded.pipeline, fixed_rows=rows, activate=activate)
        with self.session():
            # Twice: the first one pays for what is set up lazily, and would spoil the measured speed.
            self._try(1)
            alone = self._try(1)
            for count in self._row_counts():
                self._try(count, min(_SHORT, self._loaded.model.num_inference_steps))
        return Warm((self._loaded.model,), self._loaded.device_name, alone)

    def session(self) -> AbstractContextManager[Any]:
        """Return a context that is held open around everything, on the device thread."""
        return self._rendezvous.session()

    def make(self, row: Row, on_step: OnStep) -> "Image":
        """Make one image; see `StepwiseBackend.make`."""
        assert self._loaded is not None, "warm_up comes first"
        request = row.request
        if self._loaded.adapters is not None:
            self._loaded.adapters.load(request.loras)  # now, so that what can't be loaded is this request's fault
        arguments = {**self._loaded.arguments(request), "prompt": request.prompt}
        if request.negative_prompt is not None:
            arguments["negative_prompt"] = request.negative_prompt
        sketch = partial(self._loaded.sketch, row) if row.preview else None
        image: Image = self._rendezvous.generate(arguments, row.seed, on_step, sketch=sketch)
        return image

    def close(self) -> None:
        """Free the device."""
        if self._meeting is not None:
            self._meeting.close()
        if self._loaded is not None:
            self._loaded.close()

    @property
    def _rendezvous(self) -> Rendezvous:
        assert self._meeting is not None, "warm_up comes first"
        return self._meeting

    def _row_counts(self) -> list[int]:
        """Return how many images are tried together before READY: all powers of two where each is compiled."""
        if self._max_batch_size == 1:
            return []
        if not self._options.compile:
            return [self._max_batch_size]
        powers = [2**power for power in range(1, self._max_batch_size.bit_length())]
        return [*(count for count in powers if count < self._max_batch_size), self._max_batch_size]

    def _try(self, count: int, steps: int | None = None) -> float:
        """Make so many images together; return the device seconds of one. Raises `StartError`."""
        assert self._loaded is not None
        hub = Hub(timer=self.timer, caps=self.caps, costs=self.costs)
        row = self._loaded.trial(steps)
        tasks = [hub.start(partial(self.make, row, nobody_watches)) for _ in range(count)]
        while hub.step():
            continue
        for task in tasks:
            if task.error is not None:
                raise StartError(f"the first images failed: {type(task.error).__name__}: {task.error}")
        return tasks[0].seconds

"""A pipeline whose requests share forwards, as the continuous engine wants it."""

import logging
from collections.abc import Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from imagegen_worker.backends import OnStep, Row, StartError, nobody_watches
from imagegen_worker.backends.diffusers.call_sharing import TRIAL_STEPS, CallSharing, alike
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.loading import weigh_model
from imagegen_worker.backends.diffusers.rendezvous import Rendezvous
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.events import Warm
from imagegen_worker.core.model import Model, ResolvedRequest, Task
from imagegen_worker.engines.continuous import calls
from imagegen_worker.engines.continuous.hub import Hub
from imagegen_worker.engines.continuous.limits import MemoryCaps, RowCosts
from imagegen_worker.engines.continuous.timing import Timer
from imagegen_worker.models.sources import Place

if TYPE_CHECKING:
    from PIL.Image import Image

_SHORT = 4
"""Steps of the images with which row counts are warmed up."""
_log = logging.getLogger(__name__)


class StepwiseDiffusers:
    """Implements `StepwiseBackend`. `max_batch_size` images run at a time at most."""

    def __init__(
        self,
        place: Place,
        name: str,
        options: LoadOptions,
        *,
        max_batch_size: int,
        caps: MemoryCaps | None = None,
        costs: RowCosts | None = None,
    ) -> None:
        self._source = (place, name, options)
        self._options = options
        self._max_batch_size = max_batch_size
        self._loaded: LoadedPipeline | None = None
        self._meeting: Rendezvous | None = None
        self.caps = caps or MemoryCaps()
        self.costs = costs or RowCosts()
        """Both learn from the first images already: an engine is to go on with them."""
        self._sharing: CallSharing | None = None
        self._drops = False

    @property
    def timer(self) -> Timer:
        """Measures forwards on the device."""
        return self._rendezvous.timer

    def weigh(self) -> int:
        """Return the bytes of the weights, on the device. Raises `StartError` if they can't be loaded."""
        return weigh_model(*self._source)

    def load(self) -> Model:
        """Load the pipeline, and make a few short images together. Raises as `warm_up` does."""
        loaded = self._open()
        with self.session():
            self._try_together(min(_SHORT, loaded.model.num_inference_steps))
        return loaded.model

    def warm_up(self) -> Warm:
        """Load the pipeline, make a first image, then as many together as will run.

        Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`.
        """
        loaded = self._open()
        with self.session():
            # Twice: the first one pays for what is set up lazily, and would spoil the measured speed.
            self._try([loaded.trial()])
            (task,) = self._try([loaded.trial()])
            self._try_together(min(_SHORT, loaded.model.num_inference_steps))
        return Warm((loaded.model,), loaded.device_name, task.seconds)

    def _open(self) -> LoadedPipeline:
        self._loaded = LoadedPipeline(*self._source)
        # Two rows an image, where guidance makes two of one.
        rows = 2 * self._max_batch_size if self._options.deterministic else None
        adapters = self._loaded.adapters
        activate = None if adapters is None else adapters.activate
        self._meeting = Rendezvous(self._loaded.pipeline, fixed_rows=rows, activate=activate)
        for variant in self._loaded.variants.pipelines():
            self._meeting.adopt(variant)
        self._sharing = CallSharing(self._loaded, self._make_or_none)
        return self._loaded

    def session(self) -> AbstractContextManager[Any]:
        """Return a context that is held open around everything, on the device thread."""
        return Rendezvous.session()

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `StepwiseBackend.call_key`; requests with another scheduler than the model's own share no call."""
        assert self._sharing is not None, "warm_up comes first"
        return self._sharing.call_key(request)

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """See `StepwiseBackend.drops_rows`; found out by the first images."""
        return self._drops

    def make(self, rows: Sequence[Row], on_step: OnStep) -> "list[Image]":
        """Make one image for each row; see `StepwiseBackend.make`."""
        loaded = self._loaded
        assert loaded is not None, "warm_up comes first"
        if loaded.adapters is not None:
            # Now, so that what can't be loaded is this request's fault.
            loaded.adapters.load(rows[0].request.loras)
        seeds = [row.seed for row in rows]
        pipeline = loaded.variants.pipeline(rows[0].request)
        sketches = partial(loaded.sketches, rows) if any(row.preview for row in rows) else None
        return self._rendezvous.generate_all(
            loaded.arguments(rows), seeds, on_step, pipeline=pipeline, sketches=sketches
        )

    def close(self) -> None:
        """Free the device."""
        if self._meeting is not None:
            self._meeting.close()
            self._meeting = None
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None

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

    def _try_together(self, steps: int) -> None:
        """Run each row count once, and find out which requests one call makes as several do."""
        assert self._loaded is not None
        assert self._sharing is not None
        counts = self._row_counts()
        if not counts:
            return
        drops = []
        for task in self._loaded.model.tasks:
            first = task == next(iter(self._loaded.model.tasks))
            if not self._options.deterministic:
                drops.append(self._try_one_call(task, counts[-1] if first else 2, steps if first else TRIAL_STEPS))
            if first:
                rows = [self._loaded.trial(steps, seed) for seed in range(counts[-1])]
                shared = self._sharing.call_key(rows[0].request) is not None
                for count in counts[:-1] if shared else counts:
                    self._try(rows[:count])
                self._try_unlike()
        self._drops = True in drops and False not in drops

    def _try_unlike(self) -> None:
        """Make two images together that differ in every argument that may differ within a forward."""
        assert self._loaded is not None
        guidance = self._loaded.model.guidance_scale
        other = None if guidance is None else guidance + 0.5
        self._try(
            [self._loaded.trial(TRIAL_STEPS), self._loaded.trial(TRIAL_STEPS + 1, seed=1, guidance_scale=other)]
        )

    def _try_one_call(self, task: Task, count: int, steps: int) -> bool | None:
        """Try whether requests share a pipeline call.

        Return whether such a call can leave rows out; None if none is shared.
        """
        assert self._sharing is not None
        tried = self._sharing.try_task(task, count=count, steps=steps)
        if tried is None:
            return None
        rows, alone = tried
        without_first = self._make_or_none(rows, unwanted={0})
        return without_first is not None and alike([alone[0], *without_first[1:]], alone)

    def _make_or_none(self, rows: Sequence[Row], unwanted: Iterable[int] = ()) -> "list[Image] | None":
        """Make the images of these rows by one call; None if the pipeline can't."""
        hub = Hub(timer=self.timer, caps=self.caps, costs=self.costs)
        task = hub.start(partial(self.make, rows, nobody_watches), images=len(rows))
        task.unwanted.update(unwanted)
        while hub.step():
            continue
        if task.error is not None:
            _log.warning("a trial call failed: %s: %s", type(task.error).__name__, task.error)
            return None
        images: list[Image] = task.result
        return images

    def _try(self, rows: Sequence[Row]) -> list[calls.Task]:
        """Make these images together, by a call each; return their tasks. Raises `StartError`."""
        hub = Hub(timer=self.timer, caps=self.caps, costs=self.costs)
        tasks = [hub.start(partial(self.make, [row], nobody_watches)) for row in rows]
        while hub.step():
            continue
        for task in tasks:
            if task.error is not None:
                raise StartError(f"the first images failed: {type(task.error).__name__}: {task.error}")
        return tasks

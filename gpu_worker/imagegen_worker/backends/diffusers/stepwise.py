"""A pipeline whose calls share forwards: the backend of continuous batching."""

import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from imagegen_common.logs import log
from imagegen_worker.backends import (
    DeviceLostError,
    DeviceMemoryError,
    GeneratedImage,
    OnStep,
    Row,
    StartError,
    completed,
    ignore_steps,
)
from imagegen_worker.backends.diffusers.call_sharing import LONG_TEXT, SHORT_TEXT, CallSharing, alike
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.backends.diffusers.finished_images import finished_images
from imagegen_worker.backends.diffusers.loaded import TRIAL_STEPS, LoadedPipeline
from imagegen_worker.backends.diffusers.loading import weigh_model
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.backends.diffusers.pipeline_classes import describe_error
from imagegen_worker.backends.diffusers.sharing_report import DenoiserForwards, MostRows, why_unshared
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.events import EngineReady
from imagegen_worker.core.model import Model, ResolvedRequest, Task
from imagegen_worker.engines.continuous import calls
from imagegen_worker.engines.continuous.limits import MemoryLimits, RowCosts
from imagegen_worker.engines.continuous.scheduler import BatchScheduler, SchedulerEvent
from imagegen_worker.engines.continuous.timing import Timer
from imagegen_worker.models.sources import ModelLocation

if TYPE_CHECKING:
    from PIL.Image import Image

_WARM_UP_STEPS = 4
"""Maximum number of steps of the images with which row counts are warmed up."""

_log = logging.getLogger(__name__)


class StepwiseDiffusers:
    """Implements `StepwiseBackend`. At most `max_batch_size` images run at a time.

    `memory_limits` and `costs` collect measurements from the first images on; the engine continues with them.
    """

    def __init__(
        self,
        place: ModelLocation,
        name: str,
        options: LoadOptions,
        *,
        max_batch_size: int,
        memory_limits: MemoryLimits | None = None,
        costs: RowCosts | None = None,
    ) -> None:
        self._source = (place, name, options)
        self._options = options
        self._max_batch_size = max_batch_size
        self._loaded: LoadedPipeline | None = None
        self._pipeline_batcher: PipelineBatcher | None = None
        self._sharing: CallSharing | None = None
        self._can_drop_rows = False
        self.memory_limits = memory_limits or MemoryLimits()
        self.costs = costs or RowCosts()

    @property
    def timer(self) -> Timer:
        """Measures forwards on the device."""
        return self._batcher.timer

    def size_bytes(self) -> int:
        """Return the bytes of the weights on the device. Raises `StartError` if they can't be loaded."""
        return weigh_model(*self._source)

    def load(self) -> Model:
        """Load the pipeline and generate a few short images together. Raises as `warm_up` does."""
        loaded = self._open()
        with self.session():
            self._try_together(min(_WARM_UP_STEPS, loaded.model.num_inference_steps))
        return loaded.model

    def warm_up(self) -> EngineReady:
        """Load the pipeline, generate a first image, then as many together as may run.

        Raises `StartError`, `DeviceMemoryError` and `DeviceLostError`.
        """
        loaded = self._open()
        with self.session():
            # Twice: the first one includes lazy initialisation, which would distort the measured speed.
            self._run_apart([loaded.trial()])
            (task,) = self._run_apart([loaded.trial()])
            self._try_together(min(_WARM_UP_STEPS, loaded.model.num_inference_steps))
        return EngineReady((loaded.model,), loaded.device_name, task.seconds)

    def _open(self) -> LoadedPipeline:
        self._loaded = LoadedPipeline(*self._source)
        # Two rows for an image: guidance doubles them.
        rows = 2 * self._max_batch_size if self._options.deterministic else None
        adapters = self._loaded.adapters
        self._pipeline_batcher = PipelineBatcher(self._loaded.pipeline, fixed_rows=rows, adapters=adapters)
        for pipeline in self._loaded.task_pipelines.pipelines():
            self._pipeline_batcher.add(pipeline)
        self._sharing = CallSharing(self._loaded, self._run_call)
        return self._loaded

    def session(self) -> AbstractContextManager[Any]:
        """See `StepwiseBackend.session`."""
        return PipelineBatcher.session()

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `StepwiseBackend.call_key`; requests with another scheduler than the model's own share no call."""
        assert self._sharing is not None, "warm_up comes first"
        return self._sharing.call_key(request)

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """See `StepwiseBackend.drops_rows`; found by the first images."""
        return self._can_drop_rows

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """See `LoadedPipeline.warnings`."""
        return () if self._loaded is None else self._loaded.warnings(request)

    def generate(self, rows: Sequence[Row], on_step: OnStep) -> list[GeneratedImage]:
        """See `StepwiseBackend.generate`."""
        loaded = self._loaded
        assert loaded is not None, "warm_up comes first"
        if loaded.adapters is not None:
            # Before the first forward, so that a LoRA that can't be loaded fails this request only.
            versions = loaded.adapters.load(rows[0].request.loras)
            if (task := calls.current_task()) is not None:
                task.adapters = versions or None
        seeds = [row.seed for row in rows]
        pipeline = loaded.task_pipelines.pipeline(rows[0].request)
        previews = partial(loaded.previews, rows) if any(row.preview for row in rows) else None
        images = self._batcher.generate_all(
            loaded.arguments(rows), seeds, on_step, pipeline=pipeline, previews=previews
        )
        with translated_errors():
            return finished_images(images)

    def close(self) -> None:
        """Free the memory of the device."""
        if self._pipeline_batcher is not None:
            self._pipeline_batcher.close()
            self._pipeline_batcher = None
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = self._sharing = None

    @property
    def _batcher(self) -> PipelineBatcher:
        assert self._pipeline_batcher is not None, "warm_up comes first"
        return self._pipeline_batcher

    def _row_counts(self) -> list[int]:
        """Return the row counts to warm up before READY: the maximum, and powers of two if compiled."""
        if self._max_batch_size == 1:
            return []
        if not self._options.compile:
            return [self._max_batch_size]
        powers = [2**power for power in range(1, self._max_batch_size.bit_length())]
        return [*(count for count in powers if count < self._max_batch_size), self._max_batch_size]

    def _try_together(self, steps: int) -> None:
        """Run each row count once, and find out which requests share a pipeline call."""
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
                    self._run_apart(rows[:count])
                self._try_different_arguments()
        self._report_sharing()
        self._can_drop_rows = True in drops and False not in drops

    def _try_different_arguments(self) -> None:
        """Generate two images together that differ in every argument that may differ within a forward.

        This only collects evidence: a pipeline that rejects these values may still work with others.
        Raises `DeviceLostError`.
        """
        try:
            self._generate_different()
        except DeviceLostError:
            raise
        except Exception as error:  # noqa: BLE001 - pipelines reject values in different ways
            _log.warning("images with different arguments failed: %s: %s", type(error).__name__, error)
            release_frames(error)
            free_device_memory()

    def _report_sharing(self) -> None:
        """Find out why requests do not share forwards; log it, and put it into the description of the model.

        Raises `DeviceLostError`.
        """
        assert self._loaded is not None
        trial = partial(self._loaded.trial, TRIAL_STEPS)
        unlike = [trial(prompt=SHORT_TEXT), trial(seed=1, prompt=LONG_TEXT)]
        alike = [trial(prompt=SHORT_TEXT), trial(seed=1, prompt=SHORT_TEXT)]
        reason = why_unshared(self._count_forwards, unlike, alike)
        self._loaded.model = replace(self._loaded.model, unshared=reason)
        if reason:
            name = self._source[1]
            log(_log, logging.WARNING, "the model does not share all forwards", model=name, reason=reason)

    def _count_forwards(self, rows: Sequence[Row]) -> DenoiserForwards:
        """Return the denoiser's forwards of images that are generated at the same time."""
        forwards = DenoiserForwards()
        for task in self._run_tasks(rows, observe=forwards.observe):
            if task.error is not None:
                release_frames(task.error)
        return forwards

    def _generate_different(self) -> None:
        """Generate the two images. Raises whatever the pipeline raises."""
        assert self._loaded is not None
        guidance = self._loaded.model.guidance_scale
        other = None if guidance is None else guidance + 0.5
        rows = [
            self._loaded.trial(TRIAL_STEPS, prompt=SHORT_TEXT),
            self._loaded.trial(TRIAL_STEPS + 1, seed=1, prompt=LONG_TEXT, guidance_scale=other),
        ]
        for task in self._run_tasks(rows):
            if task.error is not None:
                raise task.error

    def _try_one_call(self, task: Task, count: int, steps: int) -> bool | None:
        """Try whether requests share a pipeline call.

        Return whether such a call can leave rows out; None if none is shared.
        """
        assert self._sharing is not None
        tried = self._sharing.try_task(task, count=count, steps=steps)
        if tried is None:
            return None
        rows, alone = tried
        try:
            without_first = self._run_call(rows, unwanted={0})
        except DeviceMemoryError as error:
            release_frames(error)
            return False
        return without_first is not None and alike([alone[0], *without_first[1:]], alone)

    def _run_call(self, rows: Sequence[Row], unwanted: Iterable[int] = ()) -> "list[Image] | None":
        """Generate the images of these rows by one call; return None if it fails.

        Raises `DeviceMemoryError` and `DeviceLostError`.
        """
        scheduler = BatchScheduler(timer=self.timer, memory_limits=self.memory_limits, costs=self.costs)
        task = scheduler.start(partial(self.generate, rows, ignore_steps), images=len(rows))
        task.unwanted.update(unwanted)
        while scheduler.step():
            continue
        if isinstance(task.error, DeviceLostError | DeviceMemoryError):
            raise task.error
        if task.error is not None:
            _log.warning("a trial call failed: %s: %s", type(task.error).__name__, task.error)
            release_frames(task.error)
            return None
        return [completed(image) for image in task.result]

    def _run_apart(self, rows: Sequence[Row]) -> list[calls.Task]:
        """Generate these images concurrently, each in a call of its own; return the tasks.

        Fewer are generated if memory is short. Raises `StartError`, `DeviceMemoryError` if not even one fits, and
        `DeviceLostError`.
        """
        tasks = self._run_tasks(rows)
        short_of_memory = False
        for task in tasks:
            if task.error is None:
                continue
            if not isinstance(task.error, DeviceMemoryError):
                release_frames(task.error)
                raise StartError(f"the first images failed: {describe_error(task.error)}")
            if len(rows) == 1:
                raise task.error
            short_of_memory = True
        if short_of_memory:
            del tasks, task
            free_device_memory()
            _log.warning("the first images ran out of memory together images=%d", len(rows))
            return self._run_apart(rows[: len(rows) // 2])
        return tasks

    def _run_tasks(
        self, rows: Sequence[Row], observe: Callable[[SchedulerEvent], None] | None = None
    ) -> list[calls.Task]:
        """Generate these images concurrently; return the ended tasks. Raises `DeviceLostError`.

        With `observe`, which gets every forward, calls share forwards even if that is not faster.
        """
        costs = self.costs if observe is None else MostRows()
        watch = observe or (lambda event: None)
        scheduler = BatchScheduler(observe=watch, timer=self.timer, memory_limits=self.memory_limits, costs=costs)
        tasks = [scheduler.start(partial(self.generate, [row], ignore_steps)) for row in rows]
        while scheduler.step():
            continue
        for task in tasks:
            if isinstance(task.error, DeviceLostError):
                raise task.error
        return tasks

"""Construction of the engine and its models from the settings; imports only the selected backend."""

import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from imagegen_common.logs import log
from imagegen_worker.backends import Backend, GeneratedImage, ImageGenerator, OnStep, Row
from imagegen_worker.config import WorkerConfig, half_of_memory
from imagegen_worker.core.events import EngineReady
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.core.model_cache import ModelCache
from imagegen_worker.engines.static import Engine, StaticEngine
from imagegen_worker.images.encoding import EncodePool
from imagegen_worker.models.manager import B, ModelManager, ModelProvider
from imagegen_worker.models.sources import ModelSource

_log = logging.getLogger(__name__)


class LoadedEngine:
    """An engine with its models. `ready` is the event to post to the core after construction."""

    def __init__(self, config: WorkerConfig, encoder: EncodePool) -> None:
        """Load and warm up the first model, and load others if `preload` is set. Raises `StartError`."""
        self.ready: EngineReady
        self.engine: Engine
        self.close: Callable[[], None]
        if config.effective_batching == "continuous":
            self._open_continuous(config, encoder)
        else:
            self._open_static(config, encoder)

    def _open_continuous(self, config: WorkerConfig, encoder: EncodePool) -> None:
        from imagegen_worker.backends.diffusers import StepwiseDiffusers, memory_for_models
        from imagegen_worker.engines.continuous import ContinuousEngine, StepwiseBackend
        from imagegen_worker.engines.continuous.limits import MemoryLimits, RowCosts
        from imagegen_worker.engines.continuous.managed import ManagedStepwise

        memory_limits, costs = MemoryLimits(), RowCosts()
        factories = {
            name: partial(
                StepwiseDiffusers,
                source.location,
                name,
                config.load_options,
                max_batch_size=config.batch_size,
                memory_limits=memory_limits,
                costs=costs,
            )
            for name, source in config.sources.items()
            if source is not None
        }
        first = factories[config.model_name]()
        self.ready = _timed(first.warm_up)
        backend: StepwiseBackend = first
        models: ModelProvider | None = None
        self.close = first.close
        if len(factories) > 1:
            manager = self._manager(config, factories, first, lambda: memory_for_models(config.load_options))
            backend, models = ManagedStepwise(manager, first), manager
        self.engine = ContinuousEngine(
            backend,
            encoder,
            max_batch_size=config.batch_size,
            fits=_warmed_up_size(self.ready),
            memory_limits=memory_limits,
            costs=costs,
            models=models,
        )

    def _open_static(self, config: WorkerConfig, encoder: EncodePool) -> None:
        factories = {name: partial(make_backend, config, name, source) for name, source in config.sources.items()}
        first = factories[config.model_name]()
        self.ready = _timed(first.warm_up)
        backend: ImageGenerator = first
        models: ModelProvider | None = None
        self.close = first.close
        if len(factories) > 1:
            manager = self._manager(config, factories, first, partial(_memory_for_models, config))
            backend, models = ManagedBackend(manager, first), manager
        self.engine = StaticEngine(
            backend,
            encoder,
            max_batch_size=config.batch_size,
            max_batch_wait=0.0 if config.batching == "off" else config.max_batch_wait,
            fits=_warmed_up_size(self.ready) if config.backend == "diffusers" else None,
            models=models,
        )

    def _manager(
        self, config: WorkerConfig, factories: Mapping[str, Callable[[], B]], first: B, default: Callable[[], int]
    ) -> ModelManager[B]:
        """Return the manager of all models, with `first` added; load others if `preload` is set."""
        budget = config.model_memory or default()
        log(_log, logging.INFO, "model memory budget set", bytes=budget)
        manager = ModelManager(factories, ModelCache(budget, config.model_patience))
        manager.add(config.model_name, first)
        self.close = manager.close
        more = manager.preload() if config.preload else []
        self.ready = replace(self.ready, models=(*self.ready.models, *more), served=manager.names)
        return manager


class ManagedBackend:
    """Implements `ImageGenerator` with the backends of several models; `first` is loaded."""

    def __init__(self, manager: ModelManager[Backend], first: Backend) -> None:
        self._manager = manager
        self._current: Backend = first

    @property
    def seconds_per_image(self) -> float | None:
        """The speed of the model that was used last."""
        return self._current.seconds_per_image

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `ImageGenerator.call_key`."""
        return self._manager[request.model].call_key(request)

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """See `ImageGenerator.warnings`."""
        return self._manager[request.model].warnings(request)

    def generate(self, rows: list[Row], on_step: OnStep) -> Sequence[GeneratedImage]:
        """See `ImageGenerator.generate`."""
        self._current = self._manager[rows[0].request.model]
        return self._current.generate(rows, on_step)


def _warmed_up_size(ready: EngineReady) -> tuple[int, int]:
    """Return the width and height of the images of the warm-up, in pixels."""
    return (ready.models[0].width, ready.models[0].height)


def _timed(warm_up: Callable[[], EngineReady]) -> EngineReady:
    """Return what READY reports, with the seconds that loading took."""
    started = time.monotonic()
    ready = warm_up()
    return replace(ready, load_seconds=time.monotonic() - started)


def _memory_for_models(config: WorkerConfig) -> int:
    if config.backend == "simulated":
        return half_of_memory()
    from imagegen_worker.backends.diffusers import memory_for_models

    return memory_for_models(config.load_options)


def make_backend(config: WorkerConfig, name: str, source: ModelSource | None) -> Backend:
    """Return a backend for static batching, whose model is not loaded. A simulated one has no source."""
    if source is None:
        from imagegen_worker.backends.simulated import SimulatedBackend, parse_faults

        return SimulatedBackend(
            worker=config.worker_name,
            batch_seconds=config.simulated_batch_seconds,
            image_seconds=config.simulated_image_seconds,
            forward_seconds=config.simulated_forward_seconds,
            megapixel_seconds=config.simulated_megapixel_seconds,
            load_seconds=config.simulated_load_seconds,
            max_batch_size=config.batch_size,
            model=name,
            faults=parse_faults(config.simulated_fail),
        )
    from imagegen_worker.backends.diffusers import DiffusersBackend

    return DiffusersBackend(source.location, name, config.load_options, max_batch_size=config.batch_size)

"""From the settings to what makes images; only the chosen backend and engine are imported."""

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from imagegen_common.logs import log
from imagegen_worker.backends import Backend, Maker, OnStep, Row
from imagegen_worker.config import WorkerConfig, half_of_memory
from imagegen_worker.core.events import Warm
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.core.model_cache import ModelCache
from imagegen_worker.engines.static import Engine, StaticEngine
from imagegen_worker.images.encoding import EncodePool
from imagegen_worker.models.manager import B, ModelManager, Models
from imagegen_worker.models.sources import ModelSource

if TYPE_CHECKING:
    from PIL.Image import Image

_log = logging.getLogger(__name__)


class Device:
    """What the device thread has: models, and the engine that works with them. Raises `StartError`."""

    def __init__(self, config: WorkerConfig, encoder: EncodePool) -> None:
        """Load the first model and warm it up, and others that are to be there; takes from a moment to minutes."""
        self.warm: Warm
        self.engine: Engine
        self.close: Callable[[], None]
        if config.effective_batching == "continuous":
            self._open_continuous(config, encoder)
        else:
            self._open_static(config, encoder)

    def _open_continuous(self, config: WorkerConfig, encoder: EncodePool) -> None:
        from imagegen_worker.backends.diffusers import StepwiseDiffusers, memory_for_models
        from imagegen_worker.engines.continuous import ContinuousEngine, StepwiseBackend
        from imagegen_worker.engines.continuous.limits import MemoryCaps, RowCosts
        from imagegen_worker.engines.continuous.managed import ManagedStepwise

        caps, costs = MemoryCaps(), RowCosts()
        make = {
            name: partial(
                StepwiseDiffusers,
                source.place,
                name,
                config.load_options,
                max_batch_size=config.batch_size,
                caps=caps,
                costs=costs,
            )
            for name, source in config.sources.items()
            if source is not None
        }
        first = make[config.model_name]()
        self.warm = first.warm_up()
        backend: StepwiseBackend = first
        models: Models | None = None
        self.close = first.close
        if len(make) > 1:
            manager = self._manager(config, make, first, lambda: memory_for_models(config.load_options))
            backend, models = ManagedStepwise(manager, first), manager
        self.engine = ContinuousEngine(
            backend,
            encoder,
            max_batch_size=config.batch_size,
            fits=_tried(self.warm),
            caps=caps,
            costs=costs,
            models=models,
        )

    def _open_static(self, config: WorkerConfig, encoder: EncodePool) -> None:
        make = {name: partial(make_backend, config, name, source) for name, source in config.sources.items()}
        first = make[config.model_name]()
        self.warm = first.warm_up()
        backend: Maker = first
        models: Models | None = None
        self.close = first.close
        if len(make) > 1:
            manager = self._manager(config, make, first, partial(_memory_for_models, config))
            backend, models = ManagedBackend(manager, first), manager
        self.engine = StaticEngine(
            backend,
            encoder,
            max_batch_size=config.batch_size,
            max_batch_wait=0.0 if config.batching == "off" else config.max_batch_wait,
            fits=_tried(self.warm) if config.backend == "diffusers" else None,
            models=models,
        )

    def _manager(
        self, config: WorkerConfig, make: Mapping[str, Callable[[], B]], first: B, default: Callable[[], int]
    ) -> ModelManager[B]:
        """Return all models, the first of which is loaded, and what is to be loaded now."""
        budget = config.model_memory or default()
        log(_log, logging.INFO, "memory for models", bytes=budget)
        manager = ModelManager(make, ModelCache(budget, config.model_patience))
        manager.put(config.model_name, first)
        self.close = manager.close
        more = manager.preload() if config.preload else []
        self.warm = replace(self.warm, models=(*self.warm.models, *more), served=manager.names)
        return manager


class ManagedBackend:
    """Implements `Maker` with several backends. `first` is loaded."""

    def __init__(self, manager: ModelManager[Backend], first: Backend) -> None:
        self._manager = manager
        self._last: Backend = first

    @property
    def seconds_per_image(self) -> float | None:
        """That of the model used last."""
        return self._last.seconds_per_image

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """See `Maker.call_key`."""
        return self._manager[request.model].call_key(request)

    def generate(self, rows: list[Row], on_step: OnStep) -> "list[Image]":
        """See `Maker.generate`."""
        self._last = self._manager[rows[0].request.model]
        return self._last.generate(rows, on_step)


def _tried(warm: Warm) -> tuple[int, int]:
    """Return width and height of the first images, in pixels."""
    return (warm.models[0].width, warm.models[0].height)


def _memory_for_models(config: WorkerConfig) -> int:
    if config.backend == "simulated":
        return half_of_memory()
    from imagegen_worker.backends.diffusers import memory_for_models

    return memory_for_models(config.load_options)


def make_backend(config: WorkerConfig, name: str, source: ModelSource | None) -> Backend:
    """Return a backend that makes whole calls with a model, not yet loaded. A simulated one has no source."""
    if source is None:
        from imagegen_worker.backends.simulated import SimulatedBackend, parse_faults

        return SimulatedBackend(
            worker=config.worker_name,
            batch_seconds=config.simulated_batch_seconds,
            image_seconds=config.simulated_image_seconds,
            load_seconds=config.simulated_load_seconds,
            max_batch_size=config.batch_size,
            model=name,
            faults=parse_faults(config.simulated_fail),
        )
    from imagegen_worker.backends.diffusers import DiffusersBackend

    return DiffusersBackend(source.place, name, config.load_options, max_batch_size=config.batch_size)

"""From the settings to what makes images; only the chosen backend and engine are imported."""

from imagegen_worker.backends import Backend
from imagegen_worker.config import WorkerConfig
from imagegen_worker.core.events import Warm
from imagegen_worker.encoding import EncodePool
from imagegen_worker.engine import Engine, StaticEngine


class Device:
    """What the device thread has: a model, and the engine that works with it. Raises `StartError`."""

    def __init__(self, config: WorkerConfig, encoder: EncodePool) -> None:
        """Load the model and warm it up; takes from a moment to minutes."""
        self.warm: Warm
        self.engine: Engine
        if config.effective_batching == "continuous":
            from imagegen_worker.backends.diffusers import StepwiseDiffusers
            from imagegen_worker.continuous import ContinuousEngine

            stepwise = StepwiseDiffusers(
                config.model_source.place, config.model_name, config.load_options, max_batch_size=config.batch_size
            )
            self.warm = stepwise.warm_up()
            self.engine = ContinuousEngine(
                stepwise,
                encoder,
                max_batch_size=config.batch_size,
                fits=_tried(self.warm),
                caps=stepwise.caps,
                costs=stepwise.costs,
            )
            self.close = stepwise.close
            return
        backend = make_backend(config)
        self.warm = backend.warm_up()
        self.engine = StaticEngine(
            backend,
            encoder,
            max_batch_size=config.batch_size,
            max_batch_wait=0.0 if config.batching == "off" else config.max_batch_wait,
            fits=_tried(self.warm) if config.backend == "diffusers" else None,
        )
        self.close = backend.close


def _tried(warm: Warm) -> tuple[int, int]:
    """Return width and height of the first images, in pixels."""
    return (warm.models[0].width, warm.models[0].height)


def make_backend(config: WorkerConfig) -> Backend:
    """Return a backend that makes whole calls, not yet warm."""
    if config.backend == "simulated":
        from imagegen_worker.backends.simulated import SimulatedBackend, parse_faults

        return SimulatedBackend(
            worker=config.worker_name,
            batch_seconds=config.simulated_batch_seconds,
            image_seconds=config.simulated_image_seconds,
            max_batch_size=config.batch_size,
            model=config.model_name,
            faults=parse_faults(config.simulated_fail),
        )
    from imagegen_worker.backends.diffusers import DiffusersBackend

    return DiffusersBackend(config.model_source.place, config.model_name, config.load_options)

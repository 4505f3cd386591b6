"""From the settings to a backend; only the chosen one is imported."""

from imagegen_worker.backends import Backend
from imagegen_worker.config import WorkerConfig


def make_backend(config: WorkerConfig) -> Backend:
    """Return the backend that the settings ask for, not yet warm. Call it on the device thread."""
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

    return DiffusersBackend(
        folder=config.model_folder,
        name=config.model_name,
        device=config.device,
        gpu=config.gpu,
        threads=config.torch_threads,
    )

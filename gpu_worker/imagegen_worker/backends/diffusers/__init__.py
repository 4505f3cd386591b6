"""Any diffusers pipeline as a backend. torch is imported in this package and nowhere else."""

from imagegen_worker.backends.diffusers.loading import memory_for_models
from imagegen_worker.backends.diffusers.static import DiffusersBackend
from imagegen_worker.backends.diffusers.stepwise import StepwiseDiffusers

__all__ = ["DiffusersBackend", "StepwiseDiffusers", "memory_for_models"]

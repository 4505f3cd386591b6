"""Backends that run diffusers pipelines. Only this package of the worker imports torch."""

from imagegen_worker.backends.diffusers.loading import memory_for_models
from imagegen_worker.backends.diffusers.static import DiffusersBackend
from imagegen_worker.backends.diffusers.stepwise import StepwiseDiffusers

__all__ = ["DiffusersBackend", "StepwiseDiffusers", "memory_for_models"]

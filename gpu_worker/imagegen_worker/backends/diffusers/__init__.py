"""Any diffusers pipeline as a backend. torch is imported in this package and nowhere else."""

from imagegen_worker.backends.diffusers.static import DiffusersBackend

__all__ = ["DiffusersBackend"]

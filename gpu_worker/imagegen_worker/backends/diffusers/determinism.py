"""Reproducible kernels on a CUDA device, for `--deterministic`."""

import os

import torch

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


def use_deterministic_kernels() -> None:
    """Make torch use kernels that give equal results for equal inputs, in this process.

    cuBLAS reads its variable when the device is first used; a value in the environment stays. Operations without
    such a kernel only warn.
    """
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Off: filling new tensors takes time and only helps to find errors.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True

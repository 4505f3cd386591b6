"""Translation of torch's errors about the device into the worker's own exceptions."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError

_CPU_OUT_OF_MEMORY = ("DefaultCPUAllocator", "can't allocate memory", "not enough memory")
"""Texts of a failed allocation on the CPU, for which torch has no exception type."""


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raise `DeviceMemoryError` and `DeviceLostError` in place of torch's errors about the device."""
    try:
        yield
        return
    except torch.OutOfMemoryError as error:
        translated: Exception = DeviceMemoryError(str(error))
    except torch.AcceleratorError as error:
        translated = DeviceLostError(str(error))
    except MemoryError as error:
        translated = DeviceMemoryError(str(error))
    except RuntimeError as error:
        if not any(text in str(error) for text in _CPU_OUT_OF_MEMORY):
            raise
        translated = DeviceMemoryError(str(error))
    raise translated  # outside of the handler: the frames of the original error hold tensors

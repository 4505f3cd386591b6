"""Translation of torch's errors about the device into the worker's own exceptions."""

from types import TracebackType

import torch

from imagegen_worker.backends import DeviceLostError, DeviceMemoryError
from imagegen_worker.backends.tracebacks import release_frames

_OUT_OF_MEMORY = (
    "out of memory",  # CUDA's runtime and driver, HIP, Triton
    "cudaerrormemoryallocation",
    # The libraries of CUDA allocate memory of their own: cuBLAS, cuDNN, cuSOLVER, cuSPARSE, cuFFT.
    "_status_alloc_failed",
    "cufft_alloc_failed",
    "device_allocation_failed",
    # These are raised if memory is short when a library's handle is created, at its first use.
    "cublas_status_not_initialized",
    "cudnn_status_not_initialized",
    "unable to find an engine to execute this computation",  # cuDNN without memory for a workspace
    # The CPU.
    "defaultcpuallocator",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
)
"""Lower-case texts of out-of-memory errors for which torch has no exception type."""


def translated_errors() -> "_TranslatedErrors":
    """Raise `DeviceMemoryError` and `DeviceLostError` in place of torch's errors about the device.

    The new error has no references to the frames and tensors of the original one.
    """
    return _TranslatedErrors()


class _TranslatedErrors:
    """See `translated_errors`. A generator in place of this class would refer to the error that it raises."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise the translated error, if `error` is one about the device."""
        translated = None if error is None else _translation(error)
        if translated is None:
            return
        message = str(error)
        if error is not None:
            release_frames(error)
        del error, trace  # the frame of this method is in the traceback of the new error
        raise translated(message)


def _translation(error: BaseException) -> type[DeviceMemoryError] | type[DeviceLostError] | None:
    """Return the type of the exception to raise in place of an error; None for errors that are not translated."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return DeviceMemoryError
    if isinstance(error, RuntimeError):  # also the base of torch.AcceleratorError
        if any(text in str(error).lower() for text in _OUT_OF_MEMORY):
            return DeviceMemoryError
        if isinstance(error, torch.AcceleratorError):
            return DeviceLostError
    return None

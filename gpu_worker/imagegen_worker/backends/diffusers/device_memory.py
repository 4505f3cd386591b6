"""Memory of the device."""

import gc

import torch


def free_device_memory() -> None:
    """Release the device memory that torch has cached, and that of tensors which only garbage refers to."""
    gc.collect()  # first: only memory without tensors can be released
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

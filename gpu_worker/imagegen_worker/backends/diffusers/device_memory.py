"""Memory of the device."""

import gc

import torch


def free_device_memory() -> None:
    """Run the garbage collector, then release the device memory that torch has cached."""
    gc.collect()  # first: only memory without tensors can be released
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""Memory of the device."""

import torch


def free_device_memory() -> None:
    """Release the device memory that torch has cached."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

"""These tests need a CUDA device; elsewhere they are skipped."""

import pytest
import torch


@pytest.fixture(autouse=True)
def cuda():
    """Skip the test where torch has no device."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")

"""How closely images are compared: see docs/decisions/0013-bit-equality.md.

Equal bits are claimed under conditions only: float32 on a CPU, the same number of threads, and MKL in its
reproducible mode, which `tests/conftest.py` sets for the whole run. Without the mode (`MKL_CBWR= make test`), and
where torch has no MKL, the same tests compare within a tolerance. All other tests always do.
"""

import os

import numpy as np
import torch

from imagegen_worker.backends import completed

TOLERANCE = 1e-4
"""Largest difference of two float32 images whose sums were made in another order; 0 to 1 are black to white."""
PIXEL_TOLERANCE = 2
"""The same in steps of 255: rounding to 8 bits moves either image by at most one step."""


def bits_or(tolerance):
    """Return the largest difference allowed where equal bits are claimed: 0, or the tolerance without the mode."""
    assert torch.get_num_threads() == 1, "equal bits are claimed for one number of threads; use `one_thread`"
    return 0 if torch.backends.mkl.is_available() and os.environ.get("MKL_CBWR") else tolerance


def same_values(one, other):
    """Whether two float32 tensors are equal but for rounding."""
    return torch.allclose(one, other, rtol=0, atol=TOLERANCE)


def pixel_difference(one, other):
    """Return the largest difference of two images, in steps of 255; each may still be on its way to the host."""
    one, other = completed(one), completed(other)
    assert (one.size, one.mode) == (other.size, other.mode)
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


def same_bits(one, other):
    """Whether two images are equal in every bit, or within the tolerance without the mode."""
    return pixel_difference(one, other) <= bits_or(PIXEL_TOLERANCE)


def same_image(one, other):
    """Whether two images are equal but for rounding."""
    return pixel_difference(one, other) <= PIXEL_TOLERANCE

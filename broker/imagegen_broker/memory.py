"""Memory of large frames, kept for the next ones in place of going back to the system each time."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 64 * 2**20
"""Free memory that malloc keeps, in each of its few arenas."""
_HEAP_BYTES = 32 * 2**20
"""Frames of up to so many come out of what was kept; more is beyond glibc's heaps."""


def keep_freed_memory() -> None:
    """Have glibc keep what images leave behind: the pages of fresh memory cost a result of 1 MB a third more.

    Elsewhere than with glibc it does nothing. See `mallopt(3)`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)

"""Tuning of malloc: freed memory of large frames is kept for the next ones."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEPT_BYTES = 64 * 2**20
"""Free memory that malloc keeps in each of its arenas."""
_HEAP_BYTES = 32 * 2**20
"""Size up to which a frame is allocated from the kept memory; the maximum of glibc's heaps."""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory. Mapping fresh pages makes forwarding a result of 1 MB a third slower.

    Does nothing without glibc. See `mallopt(3)`.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _HEAP_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)

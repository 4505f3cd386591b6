"""Memory of the process: a maximum, and the amount of freed memory that malloc keeps."""

import contextlib
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from imagegen_common.logs import flush, log

_log = logging.getLogger("imagegen.broker")

MEMORY_STATUS = 75
"""Exit status of a process that exceeded its memory limit (EX_TEMPFAIL)."""
_CHECK_SECONDS = 0.2
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

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


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except OSError:
        return None


@contextlib.contextmanager
def limit_memory(maximum: int, end: Callable[[int], object] = os._exit) -> Iterator[None]:
    """End the process with `MEMORY_STATUS` if its resident memory exceeds `maximum` bytes; 0: never.

    libzmq collects the frames of a message before the broker sees any of them, so only the process
    can be limited.
    """
    if not maximum or resident_bytes() is None:
        yield
        return
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(_CHECK_SECONDS):
            if (used := resident_bytes() or 0) > maximum:
                text = "memory limit exceeded, exiting"
                log(_log, logging.CRITICAL, text, resident_bytes=used, max_memory=maximum, status=MEMORY_STATUS)
                flush()
                end(MEMORY_STATUS)
                return

    thread = threading.Thread(target=watch, name="memory", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join()

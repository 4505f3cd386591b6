"""What malloc keeps: a process of its own frees large pieces, and takes them again without asking the system."""

import queue
import subprocess
import sys
import threading

import pytest

from imagegen_broker.memory import MEMORY_STATUS, limit_memory

PROGRAM = """
import ctypes, resource, sys
if not hasattr(ctypes.CDLL(None), "mallopt"):
    sys.exit(77)
from imagegen_broker.memory import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
faults = []
for _ in range(20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    pieces = [libc.malloc(1 << 20) for _ in range(24)]
    for piece in pieces:
        ctypes.memset(piece, 1, 1 << 20)
    for piece in pieces:
        libc.free(piece)
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults[2:]))
"""


def test_large_pieces_are_used_again():
    ran = subprocess.run([sys.executable, "-c", PROGRAM, "kept"], capture_output=True, text=True)
    if ran.returncode == 77:
        pytest.skip("not glibc")
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) < 100, "of the 6,144 pages"


def test_the_process_ends_when_it_needs_more_than_the_maximum(caplog):
    ended = queue.SimpleQueue()
    with limit_memory(1, ended.put):
        assert ended.get(timeout=30) == MEMORY_STATUS
    assert "memory limit exceeded" in caplog.text


@pytest.mark.parametrize("maximum", [0, 2**50])
def test_below_the_maximum_nothing_happens(maximum):
    before = threading.active_count()
    with limit_memory(maximum, pytest.fail):
        assert threading.active_count() == before + (maximum > 0)
    assert threading.active_count() == before

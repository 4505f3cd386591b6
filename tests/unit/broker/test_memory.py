"""What malloc keeps: a process of its own frees large pieces, and takes them again without asking the system."""

import subprocess
import sys

import pytest

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

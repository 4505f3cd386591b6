"""The broker and what it is measured against, each started as a process of its own."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from benchmarks.broker.rig import Imagegen, Plain, Rig
from tools.fleet import Fleet

CONTENDERS = ("proxy", "bare", "imagegen")
DIRECT = "direct"
"""No broker at all: to tell what one adds."""
WORKERS = 4


class Started(NamedTuple):
    """A contender with its peers connected; `pid` is of the process that forwards, if there is one."""

    rig: Rig
    pid: int | None


@contextmanager
def started(name: str, image_bytes: int, logs: Path, prefix: Sequence[str] = ()) -> Iterator[Started]:
    """Start a contender, and a client and workers that answer with images of so many bytes.

    imagegen's broker has everything on that is on by default, a line in the log for each request too, which goes
    into a file in `logs`. `prefix`: a command that runs it, as a profiler does.
    """
    image = bytes(image_bytes)
    if name == DIRECT:
        rig = Rig(None, None, Plain(image, greets=False), WORKERS)
        yield Started(rig, None)
        rig.close()
        return
    if name == "imagegen":
        with Fleet(logs) as fleet:
            at = fleet.start_broker(prefix=prefix)
            rig = Rig(at.frontend, at.backend, Imagegen(image), WORKERS)
            yield Started(rig, fleet.processes["broker"].pid)
            rig.close()
        return
    command = [sys.executable, "-m", "benchmarks.broker.loops", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "it was asked for"
        frontend, backend = process.stdout.readline().split()
        try:
            rig = Rig(frontend, backend, Plain(image, greets=name == "bare"), WORKERS)
            yield Started(rig, process.pid)
            rig.close()
        finally:
            process.kill()

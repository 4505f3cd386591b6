"""One scenario with one peer: its process, its time limit, and the end of everything that it left behind."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.peers.setups.device import ACCOUNT, Work

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_SECONDS = 150.0
_LOG_LINES = 3


class PeerError(Exception):
    """A peer could not be set up, or did not do what was asked."""


def run(name: str, python: Path, work: Work, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Do it; return what the setup printed. The log stays in `folder`. Raises `PeerError`."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as scratch:
        work = replace(work, folder=scratch)
        own = {"TMPDIR": scratch, "IPYTHONDIR": scratch, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        log = folder / "setup.log"
        command = [str(python), "-m", f"benchmarks.peers.setups.{name}_peer"]
        with log.open("w") as stderr, (folder / "stdout").open("w+") as stdout:
            process = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment, **own, **work.as_environment()},
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
            try:
                process.wait(LIMIT_SECONDS)
            except subprocess.TimeoutExpired:
                raise PeerError(f"not done after {LIMIT_SECONDS:.0f} s") from None
            finally:
                end_all(scratch)
                process.wait()
            stdout.seek(0)
            told = _last_object(stdout.read())
        if told is None:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            said = " / ".join(lines[-_LOG_LINES:])
            raise PeerError(f"status {process.returncode}: {said[-400:]}")
        if work.scenario == "kill":
            told |= repeated(Path(scratch))
        for kept in (Path(scratch) / "logs").glob("*.log"):
            shutil.copy(kept, folder / kept.name)
    return told


def _last_object(printed: str) -> dict[str, Any] | None:
    """Return the last line that is a JSON object; peers print things of their own beside it."""
    for line in reversed(printed.splitlines()):
        with suppress(ValueError):
            found = json.loads(line)
            if isinstance(found, dict):
                return found
    return None


def repeated(folder: Path) -> dict[str, int]:
    """Return how many requests were begun, and how many ended, more than once."""
    lines = Counter((folder / ACCOUNT).read_text().splitlines())
    return {
        f"{what}_again": sum(count > 1 for line, count in lines.items() if line.startswith(what))
        for what in ("begun", "ended")
    }


def end_all(scratch: str) -> None:
    """Kill every process whose environment has this folder in it: daemons leave groups and sessions."""
    mark = scratch.encode()
    while victims := [int(place.name) for place in Path("/proc").glob("[0-9]*") if _carries(place, mark)]:
        for pid in victims:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _carries(place: Path, mark: bytes) -> bool:
    try:
        # A zombie has no environment any more.
        return mark in (place / "environ").read_bytes()
    except OSError:
        return False

"""Runs each stage in a process of its own, and ends it at its time limit; results are on disk at any time."""

import contextlib
import importlib
import json
import multiprocessing
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu.stages import Stage

_LIBRARIES = ("benchmarks.gpu.equality", "benchmarks.gpu.memory", "benchmarks.gpu.traffic", "tests.rehearsal.card")
"""Modules that are imported once; stages are forked from the process that has them."""
_START_SECONDS = 120.0
"""Limit for the imports and the initialisation of CUDA."""
_LEAST_SECONDS = 5.0
"""A stage that has less is not started."""


class Runner:
    """Runs stages; `seconds` for all of them together. `folder` receives a file of results from each."""

    def __init__(self, folder: Path, *, small: bool, seconds: float, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._small = small
        self._deadline = time.monotonic() + seconds
        self._say = say
        folder.mkdir(parents=True, exist_ok=True)
        # A stage that is killed leaves the lock of a progress bar, of which the tracker would warn at the end.
        sys.warnoptions.append("ignore:resource_tracker:UserWarning")
        # The server has no threads and no CUDA context, so that it can fork.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(_LIBRARIES))

    def describe(self) -> dict[str, Any]:
        """Import the libraries; return the device, or `{"error": …}` if torch sees none."""
        about = self.run(Stage("device", "the device", "benchmarks.gpu.runner:describe_device", _START_SECONDS))
        if about["outcome"] != "passed":
            return {"error": about["detail"]}
        (row,) = about["tables"]["Device"]
        return dict(row)

    def run_all(
        self, stages: Iterable[Stage], done: Callable[[list[dict[str, Any]]], None]
    ) -> list[dict[str, Any]]:
        """Run stages one after the other; call `done` with all results so far after each."""
        results: list[dict[str, Any]] = []
        for stage in stages:
            results.append(self.run(stage))
            done(results)
        return results

    def run(self, stage: Stage) -> dict[str, Any]:
        """Run one stage until its end or its limit; return its outcome and what it recorded."""
        limit = min(stage.limit, self._deadline - time.monotonic())
        file = self._folder / f"{stage.name}.json"
        file.unlink(missing_ok=True)
        result = {"name": stage.name, "title": stage.title, "limit": stage.limit, "seconds": 0.0}
        if limit < min(_LEAST_SECONDS, stage.limit):
            return {**result, **_read(file), "outcome": "not started", "detail": "the total time is used up"}
        self._say(f"{stage.name}: {stage.title}, at most {limit:.0f} s")
        begun = time.monotonic()
        arguments = (stage, self._folder, limit, self._small)
        process = self._context.Process(target=_run_stage, args=arguments, daemon=False)
        process.start()
        process.join(limit)
        overran = process.is_alive()
        if overran:
            _kill(process.pid)
            process.join()
        result["seconds"] = time.monotonic() - begun
        recorded = _read(file)
        outcome, detail = _outcome(recorded, overran, limit, process.exitcode)
        self._say(f"{stage.name}: {outcome}{f' ({detail})' if detail else ''}, {result['seconds']:.1f} s")
        return {**result, **recorded, "outcome": outcome, "detail": detail}


def _read(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except FileNotFoundError:
        return {"checks": [], "tables": {}, "error": None}
    return content


def _outcome(recorded: dict[str, Any], overran: bool, limit: float, status: int | None) -> tuple[str, str]:
    """Return how a stage ended, and the details."""
    failed = [check for check in recorded["checks"] if not check["passed"]]
    wrong = "; ".join(f"{check['what']}: {check['detail'] or 'no'}" for check in failed)
    if overran:
        return "overran", "; ".join(filter(None, (f"ended at its limit of {limit:.3g} s", wrong)))
    if recorded["error"] is not None:
        return "raised", recorded["error"]
    if status != 0:
        return "died", f"exit status {status}"
    return ("failed", wrong) if failed else ("passed", "")


def _kill(pid: int | None) -> None:
    """Kill a stage and the processes that it started."""
    assert pid is not None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _run_stage(stage: Stage, folder: Path, seconds: float, small: bool) -> None:
    """Run a stage, in its process."""
    os.setsid()
    from benchmarks.gpu.bench import Bench, device_ready, quiet

    bench = Bench(stage.name, folder, seconds, small=small)
    module, _, name = stage.function.partition(":")
    try:
        with quiet(), device_ready(small):
            getattr(importlib.import_module(module), name)(bench)
    except Exception as error:  # noqa: BLE001 - the report has it, and later stages run
        traceback.print_exc()
        bench.fail(error)
        sys.exit(1)


def describe_device(bench: Any) -> None:
    """Record the device and the versions."""
    import diffusers
    import torch

    properties = torch.cuda.get_device_properties(0)
    bench.row(
        "Device",
        device=torch.cuda.get_device_name(0),
        memory_gib=properties.total_memory / 2**30,
        torch=torch.__version__,
        cuda=torch.version.cuda,
        diffusers=diffusers.__version__,
        python=platform.python_version(),
    )

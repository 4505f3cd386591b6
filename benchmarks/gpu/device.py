"""Measurements on the device: time between forwards, peaks of memory, host synchronisations, kernels."""

import functools
import gzip
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

GIB = 2**30
_ROOT = Path(__file__).parent.parent.parent
_SYNCHRONISED = "called a synchronizing CUDA operation"
"""Beginning of torch's warning about an operation for which the host waits."""
_ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a trace's events that happen on the device."""


class Watch:
    """Measures the forwards of a pipeline's models, with CUDA events around each, and the peak of memory.

    Wraps the models before a backend does.
    """

    def __init__(self, pipeline: Any) -> None:
        self._marks: list[tuple[Any, Any]] = []
        for name, module in pipeline.components.items():
            if isinstance(module, torch.nn.Module):
                method = "decode" if name == "vae" else "forward"
                setattr(module, method, self._timed(getattr(module, method)))

    def start(self) -> None:
        """Drop all measurements so far."""
        self._marks.clear()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()

    def idle(self) -> float:
        """Return the share of the time, from the first forward to the end of the last, that was in none of them.

        The few operations of the scheduler count as idle.
        """
        if not self._marks:
            return 0.0
        torch.cuda.synchronize()
        whole = self._marks[0][0].elapsed_time(self._marks[-1][1])
        busy = sum(begun.elapsed_time(ended) for begun, ended in self._marks)
        return max(1 - busy / whole, 0.0) if whole else 0.0

    @staticmethod
    def peak() -> float:
        """Return the peak of memory since `start`, in GiB."""
        return torch.cuda.max_memory_allocated() / GIB

    def _timed(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = _mark()
            output = forward(*args, **kwargs)
            self._marks.append((begun, _mark()))
            return output

        return timed


def _mark() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


@contextmanager
def limited_memory(gib: float) -> Iterator[None]:
    """Let torch's allocator use at most this many GiB."""
    whole = torch.cuda.get_device_properties(0).total_memory / GIB
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(gib / whole, 1.0), 0)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)


@contextmanager
def counted_synchronisations() -> Iterator[Counter[str]]:
    """Count, by source line, how often the host waits for the device: torch's warnings, and waits for events."""
    counts: Counter[str] = Counter()
    wait = torch.cuda.Event.synchronize

    def show(message: Warning | str, category: object, filename: str, line: int, *_: object) -> None:
        if str(message).startswith(_SYNCHRONISED):
            place = filename.rpartition("site-packages/")[2].removeprefix(f"{_ROOT}/")
            counts[f"{place}:{line}"] += 1

    def synchronize(event: torch.cuda.Event) -> None:
        counts["Event.synchronize"] += 1
        wait(event)

    with (
        warnings.catch_warnings(),
        mock.patch.object(warnings, "showwarning", show),
        mock.patch.object(torch.cuda.Event, "synchronize", synchronize),
    ):
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield counts
        finally:
            torch.cuda.set_sync_debug_mode("default")


def profiled(work: Callable[[], Any], trace: Path) -> dict[str, Any]:
    """Run some work under torch's profiler; write the trace, compressed.

    Return its seconds, the share of them in which a kernel ran (None if the trace has no kernel), and the longest
    kernels by name, in seconds.
    """
    with torch.profiler.profile(activities=list(torch.profiler.supported_activities())) as profiler:
        work()
        torch.cuda.synchronize()
    plain = trace.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    text = plain.read_text()
    plain.unlink()
    trace.write_bytes(gzip.compress(text.encode(), 6))
    events = [event for event in json.loads(text)["traceEvents"] if "dur" in event and "ts" in event]
    return {"events": len(events), **busy_share(events)}


def busy_share(events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return, of a trace's events (µs), the share of the time with a kernel, and seconds by kernel."""
    kernels = sorted((event for event in events if event.get("cat") in _ON_DEVICE), key=lambda event: event["ts"])
    if not kernels:
        return {"busy": None, "kernels": {}}
    seconds: Counter[str] = Counter()
    busy, end = 0.0, kernels[0]["ts"]
    for event in kernels:
        seconds[event["name"]] += event["dur"] / 1e6
        busy += max(event["ts"] + event["dur"] - max(end, event["ts"]), 0.0)
        end = max(end, event["ts"] + event["dur"])
    return {"busy": busy / (end - kernels[0]["ts"]), "kernels": dict(seconds.most_common(5))}

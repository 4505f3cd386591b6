"""The stage that runs out of memory: no image may be lost, and nothing may stay behind."""

import gc
from typing import Any
from unittest import mock

import torch

from benchmarks.batching import traffic
from benchmarks.batching.contenders import Field, Outcome, run
from benchmarks.gpu.bench import Bench, release_memory
from benchmarks.gpu.device import GIB, limited_memory
from benchmarks.gpu.equality import pixel_difference
from benchmarks.gpu.models import model
from benchmarks.gpu.serving import serving
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher

SHARES = (0.8, 0.4)
"""Memory limits, from what one image needs (0) to what all together need (1)."""
SLACK = 1 << 20
"""Bytes that may stay behind on a real device, for workspaces of the libraries."""


class _WithoutPromptCache(PipelineBatcher):
    """Keeps no embeddings: they would count as memory that is held."""

    def __init__(self, pipeline: Any, **options: Any) -> None:
        super().__init__(pipeline, **options, prompt_cache_bytes=0)


def memory(bench: Bench) -> None:
    """Generate a burst within less and less memory."""
    described = model("sdxl", small=bench.small)
    pipeline = described.make(bench.device)
    with (
        mock.patch("imagegen_worker.backends.diffusers.stepwise.PipelineBatcher", _WithoutPromptCache),
        serving(pipeline, described, bench.folder) as field,
    ):
        requests = traffic.burst(field.model, described.rows, alike=True, mix=described.mix)
        _serve(field, requests)  # allocates workspaces
        release_memory()
        used = torch.cuda.memory_allocated()
        one = _peak(field, requests[:1])[1]
        expected, all_together = _peak(field, requests)
        for share in SHARES:
            limit = one + share * (all_together - one)
            with limited_memory(limit):
                outcome = _serve(field, requests)
            release_memory()
            held = torch.cuda.memory_allocated() - used
            _record(bench, described.title, (one, all_together, limit), expected, outcome, held)


def _serve(field: Field, requests: list[traffic.Arrival]) -> Outcome:
    # A new engine, which knows no memory limits.
    return run(field.contenders["continuous"], requests)


def _peak(field: Field, requests: list[traffic.Arrival]) -> tuple[Outcome, float]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    outcome = _serve(field, requests)
    return outcome, torch.cuda.max_memory_allocated() / GIB


def _record(
    bench: Bench, title: str, limits: tuple[float, float, float], expected: Outcome, outcome: Outcome, held: int
) -> None:
    one, all_together, limit = limits
    count = len(expected.images)
    pixels: Any = max(pixel_difference(outcome.images[number], image) for number, image in expected.images.items())
    bench.row(
        "Out of memory on purpose",
        model=title,
        images=f"{len(outcome.images)} of {count}",
        **{
            "one image needs, GiB": one,
            "all need": all_together,
            "limit": limit,
            "splits": outcome.splits,
            "bytes held afterwards": held,
            "pixels": pixels,
        },
    )
    what = f"limit of {limit:.4g} GiB"
    bench.check(f"{what}: all images", len(outcome.images) == count)
    bench.check(f"{what}: a forward ran out of memory", outcome.splits > 0, f"{outcome.splits} splits")
    bench.check(f"{what}: memory is released", held <= (0 if bench.small else SLACK), f"{held} bytes")
    gc.collect()

"""Stages with models of real size: images, mixed traffic, uniform bursts, and time on the device."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from benchmarks.batching import traffic
from benchmarks.batching.contenders import Field, Outcome, run
from benchmarks.batching.report import quantile
from benchmarks.batching.traffic import Arrival
from benchmarks.gpu.bench import Bench, release_memory
from benchmarks.gpu.device import Watch, counted_synchronisations, profiled
from benchmarks.gpu.equality import pixel_difference
from benchmarks.gpu.models import GpuModel, model
from benchmarks.gpu.serving import alone, serving, together
from imagegen_worker.backends import Row
from imagegen_worker.core.model import Model
from imagegen_worker.engines.continuous import ContinuousEngine

LOAD = 1.3
"""Arrivals per second, over the images per second of the stock pipeline one by one."""
WAIT = 0.05
"""Seconds for which static batching waits for further requests: the worker's default."""
_MOST, _LEAST = 40, 8
"""Number of requests of a run."""
_SHARE = 0.8
"""Share of the time left that runs are planned to take."""
GOAL = 0.97
"""Images per second of the engine over those of the offline loop, for uniform bursts."""


def mixed(bench: Bench, name: str) -> None:
    """Check the images of a model, then serve the same mixed traffic in three ways."""
    described = model(name, small=bench.small)
    pipeline = described.make(bench.device)
    pipeline.set_progress_bar_config(disable=True)
    _images(bench, described, pipeline)
    with serving(pipeline, described, bench.folder, waits=(WAIT,)) as field:
        few = traffic.burst(field.model, 4, seed=99, mix=described.mix)
        run(field.contenders["one by one"], few)
        rate = len(few) / run(field.contenders["one by one"], few).seconds
        count = _count(bench, len(field.contenders) / rate, described.rows)
        asked = traffic.poisson(field.model, count, LOAD * rate, mix=described.mix)
        _serve_all(bench, described, field, f"Poisson at {LOAD} of one by one", asked)
        if not bench.small and bench.remaining() > 1.3 * len(field.contenders) * (count + described.rows) / rate:
            asked = traffic.burst(field.model, count, seed=1, mix=described.mix)
            _serve_all(bench, described, field, "burst", asked)


def _count(bench: Bench, seconds_each: float, warm_up: int) -> int:
    """Return how many requests to send after `warm_up` others; each takes so many seconds of the stage."""
    if bench.small:
        return 4
    return max(min(int(_SHARE * bench.remaining() / seconds_each) - warm_up, _MOST), _LEAST)


def _serve_all(bench: Bench, described: GpuModel, field: Field, kind: str, asked: Sequence[Arrival]) -> None:
    warm_up = traffic.burst(field.model, described.rows, seed=-1, mix=described.mix)
    for contender, serve in field.contenders.items():
        outcome = run(serve, asked, warm_up, encode=True)
        latencies = sorted(outcome.latencies.values())
        bench.row(
            "Mixed traffic (steps, prompts, sizes, arrivals)",
            model=described.title,
            traffic=f"{len(asked)}, {kind}",
            **{"served by": contender, "images/s": len(asked) / outcome.seconds},
            **{"p50 s": quantile(latencies, 0.5), "p99 s": quantile(latencies, 0.99)},
            **{"images per forward": _images_per_forward(outcome)},
        )
        bench.check(f"{kind}, {contender}: all images", len(outcome.images) == len(asked))


def _images_per_forward(outcome: Outcome) -> float | None:
    """Return the images per forward of the denoiser; None where no engine counted."""
    calls = [call.requests for call in outcome.calls]
    return statistics.fmean(calls) if calls else None


def _images(bench: Bench, described: GpuModel, pipeline: Any) -> None:
    """Check that images are finite, and that prompts change them more than batching does."""
    asked = [each.request for each in traffic.burst(_model_of(described), 3, seed=5, mix=described.mix)]
    calls = [
        {
            "prompt": request.prompt,
            "width": described.side,
            "height": described.side,
            "num_inference_steps": described.steps + index,
            "guidance_scale": described.guidance,
            "output_type": "pt",
        }
        for index, request in enumerate(asked)
    ]
    first, again = alone(pipeline, calls[0], 0), alone(pipeline, calls[0], 0)
    other = alone(pipeline, {**calls[0], "prompt": calls[1]["prompt"]}, 0)
    batched = together(pipeline, calls, (0, 0, 1))
    finite = all(bool(torch.isfinite(image).all()) for image in (first, other, *batched))
    contrast = float(first.float().std())
    prompts, batches = _mean_difference(first, other), _mean_difference(first, batched[0])
    bench.row(
        "Images of models with random weights (0 to 1)",
        model=described.title,
        finite=finite,
        contrast=contrast,
        **{
            "another prompt changes": prompts,
            "a batch changes": batches,
            "a repetition": _mean_difference(first, again),
        },
    )
    bench.check("finite images", finite)
    bench.check("images are not uniform", contrast > 0.001, f"standard deviation {contrast:.2g}")
    bench.check("prompts matter more than batching", prompts > batches, f"{prompts:.2g} and {batches:.2g}")


def _model_of(described: GpuModel) -> Model:
    return Model(
        name=described.name,
        num_inference_steps=described.steps,
        guidance_scale=described.guidance,
        width=described.side,
        height=described.side,
    )


def _mean_difference(one: Any, other: Any) -> float:
    return float((one.float() - other.float()).abs().mean())


def uniform(bench: Bench, name: str) -> None:
    """Serve bursts of equal requests by the engine and by a loop over the stock pipeline, in turns."""
    described = model(name, small=bench.small)
    pipeline = described.make(bench.device)
    watch = Watch(pipeline)
    with serving(pipeline, described, bench.folder) as field:
        for rows in (2,) if bench.small else (described.rows, 1, 4):
            asked = traffic.burst(field.model, max(2 * rows, 4), alike=True, mix=described.mix)
            begun = time.monotonic()
            _both(bench, described, field, watch, asked, rows, repeats=1 if bench.small else 3)
            if bench.remaining() < 1.2 * (time.monotonic() - begun):
                return


def _both(
    bench: Bench, described: GpuModel, field: Field, watch: Watch, asked: list[Arrival], rows: int, repeats: int
) -> None:
    """Measure both ways with `rows` images together; the ratio is that of the medians of all repetitions."""
    loop = partial(_loop, field, asked, rows)
    loop()
    ours, theirs = [], []
    for _ in range(repeats):
        watch.start()
        begun = time.perf_counter()
        expected = loop()
        theirs.append(time.perf_counter() - begun)
        loop_device = watch.idle(), watch.peak()
        outcome = _engine(field, asked, rows, watch)
        ours.append(outcome.seconds)
        engine_device = watch.idle(), watch.peak()
    ratio = statistics.median(theirs) / statistics.median(ours)
    pixels = max(pixel_difference(outcome.images[number], image) for number, image in enumerate(expected))
    bench.row(
        "Uniform bursts, the engine and an offline loop",
        model=described.title,
        together=rows,
        **{
            "engine, images/s": len(asked) / statistics.median(ours),
            "loop": len(asked) / statistics.median(theirs),
        },
        **{"engine / loop": ratio, "engine idle %": 100 * engine_device[0], "loop idle %": 100 * loop_device[0]},
        **{"engine peak GiB": engine_device[1], "loop peak GiB": loop_device[1], "pixels": pixels},
    )
    if not bench.small:  # the pretended card shows nothing about speed
        bench.check(f"{rows} together: engine / loop ≥ {GOAL}", ratio >= GOAL, f"{ratio:.3f}")


def _loop(field: Field, asked: Sequence[Arrival], rows: int) -> list[Any]:
    """Generate the images by calls of the stock pipeline for `rows` of them."""
    loaded = field.stock._loaded
    assert loaded is not None
    images: list[Any] = []
    for first in range(0, len(asked), rows):
        part = [Row(each.request, each.request.seeds[0]) for each in asked[first : first + rows]]
        generators = [torch.Generator("cpu").manual_seed(row.seed) for row in part]
        arguments = {**loaded.arguments(part), "output_type": "pil"}
        images += loaded.pipeline(**arguments, generator=generators).images
    return images


def _engine(field: Field, asked: Sequence[Arrival], rows: int, watch: Watch) -> Outcome:
    """Serve the requests by an engine that has served as many before."""
    return run(
        lambda encoder: ContinuousEngine(field.stepwise, encoder, max_batch_size=rows),
        asked,
        asked[: 2 * rows],
        encode=True,
        warmed_up=watch.start,
    )


def profile(bench: Bench) -> None:
    """Measure idle time, memory and host synchronisations of mixed traffic, and record one trace."""
    for name in ("sdxl",) if bench.small else ("sdxl", "flux"):
        described = model(name, small=bench.small)
        pipeline = described.make(bench.device)
        watch = Watch(pipeline)
        with serving(pipeline, described, bench.folder) as field:
            _profile(bench, described, field, watch)
        del pipeline, watch, field
        release_memory()


def _profile(bench: Bench, described: GpuModel, field: Field, watch: Watch) -> None:
    asked = traffic.burst(field.model, described.rows, seed=3, mix=described.mix)
    serve = field.contenders["continuous"]
    outcome = run(serve, asked, asked, encode=True, warmed_up=watch.start)
    bench.row(
        "Continuous batching of a mixed burst, without warm-up",
        model=described.title,
        images=len(asked),
        seconds=outcome.seconds,
        **{"idle %": 100 * watch.idle(), "peak GiB": watch.peak()},
    )
    _synchronisations(bench, described, field)
    trace = bench.folder / f"trace-{described.name}.json.gz"
    found = profiled(lambda: run(serve, asked[:4]), trace)
    bench.row(
        "Profiler trace of four requests",
        model=described.title,
        trace=trace.name,
        events=found["events"],
        **{"kernels run % of the time": None if found["busy"] is None else 100 * found["busy"]},
    )
    for kernel, seconds in found["kernels"].items():
        bench.row("Longest kernels of the traces", model=described.title, kernel=kernel[:80], seconds=seconds)
    bench.check(f"{described.title}: a trace", trace.stat().st_size > 0)


def _synchronisations(bench: Bench, described: GpuModel, field: Field) -> None:
    """Count waits of the host for images of few and of more steps: the difference is that of the steps."""
    counted = {more: _waits(described, field, more) for more in (0, 0, 4)}  # the first one is a warm-up
    images = described.rows
    few, many = (sum(counted[more].values()) for more in (0, 4))
    bench.row(
        "Host synchronisations",
        model=described.title,
        **{"per image": few / images, "more per image with four more steps": (many - few) / images},
    )
    for line, count in counted[0].most_common(5):
        bench.row("Synchronising lines", model=described.title, line=line, **{"per image": count / images})
    bench.check(f"{described.title}: no synchronisation in a steady step", many <= few, f"{few} and {many}")


def _waits(described: GpuModel, field: Field, more_steps: int) -> Any:
    asked = [
        Arrival(0.0, replace(each.request, num_inference_steps=each.request.num_inference_steps + more_steps))
        for each in traffic.burst(field.model, described.rows, seed=3, mix=described.mix)
    ]
    with counted_synchronisations() as counts:
        run(field.contenders["continuous"], asked)
    return counts


Stage = Callable[[Bench], None]
mixed_sdxl: Stage = partial(mixed, name="sdxl")
mixed_flux: Stage = partial(mixed, name="flux")
uniform_sdxl: Stage = partial(uniform, name="sdxl")
uniform_flux: Stage = partial(uniform, name="flux")

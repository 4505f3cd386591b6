"""The engine against the best offline loop on a GPU, at equal rows: `python -m benchmarks.batching.gpu`.

SDXL and FLUX.1 at their real size (about 10 and 34 GB in bfloat16), 512 and 1024 pixels, with and without
`torch.compile`. `--small` runs next to nothing on the CPU, to see that all of it works. See docs/performance.md.
"""

import gc
import json
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import diffusers
import numpy as np
import torch
from PIL.Image import Image

from benchmarks.batching.device import GIB, OnDevice
from benchmarks.batching.full_size import REAL, SMALL, GpuModel
from benchmarks.batching.traffic import Arrival, burst
from imagegen_worker.backends.diffusers.loading import choose_device, device_name, tune_pipeline
from imagegen_worker.config import LoadOptions
from imagegen_worker.core.model import Model

GOAL = 0.98
"""Images a second of the engine over those of the offline loop, at equal rows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is run. `together`: images at a time; `calls` of so many are measured, `repeats` times each way."""

    models: tuple[GpuModel, ...]
    sides: tuple[int, ...]
    together: tuple[int, ...]
    compiled: tuple[bool, ...]
    steps: int
    calls: int = 2
    repeats: int = 3


def measure(plan: Plan, device: torch.device, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; return the report."""
    points, drills = [], []
    for model in plan.models:
        for compiled in plan.compiled:
            pipeline = model.make(device)
            tune_pipeline(pipeline, LoadOptions(compile=compiled))
            on_device = OnDevice(pipeline, model.arguments, device)
            for side in plan.sides:
                mine = []
                for together in plan.together:
                    asked = _asked(model, side, plan, together)
                    point = {"model": model.name, "compiled": compiled, "side": side, "together": together}
                    point |= _point(on_device, asked, together, plan)
                    mine.append(point)
                    say(_line(point))
                points += mine
            if not compiled:  # memory is the same, and what compiling allocates would blur it
                drills.append(_drill(on_device, model, plan, device, points))
                say(f"{model.name}: out of memory on purpose: {drills[-1]}")
            del pipeline, on_device
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
    return {
        "device": device_name(device),
        "torch": torch.__version__,
        "steps": plan.steps,
        "points": points,
        "drills": drills,
    }


def _asked(model: GpuModel, side: int, plan: Plan, together: int) -> list[Arrival]:
    about = Model(
        name=model.name,
        num_inference_steps=plan.steps,
        guidance_scale=model.arguments["guidance_scale"],
        width=side,
        height=side,
    )
    return burst(about, plan.calls * together, alike=True)


def _point(on_device: OnDevice, asked: Sequence[Arrival], together: int, plan: Plan) -> dict[str, Any]:
    """Measure one number of images at a time, both ways in turns."""
    try:
        on_device.stock(asked[:together], together)  # compiles, and finds the fastest kernels
        return _both(on_device, asked, together, plan)
    except torch.OutOfMemoryError:  # of the loop; the engine would make less at a time
        torch.cuda.empty_cache()
        return {"fits": False}


def _both(on_device: OnDevice, asked: Sequence[Arrival], together: int, plan: Plan) -> dict[str, Any]:
    on_device.engine(asked[:together], together)
    ratios: list[float] = []
    point: dict[str, Any] = {"fits": True}
    for _ in range(plan.repeats):
        (seconds, theirs), idle, peak = on_device.watched(lambda: on_device.stock(asked, together))
        point["stock"] = {"images_per_second": len(asked) / seconds, "idle": idle, "peak_gib": peak}
        outcome, idle, peak = on_device.watched(lambda: on_device.engine(asked, together))
        ours = len(asked) / outcome.seconds
        forwards = sum(call.requests for call in outcome.calls) / len(outcome.calls)
        point["engine"] = {
            "images_per_second": ours,
            "idle": idle,
            "peak_gib": peak,
            "images_per_forward": forwards,
        }
        point["difference"] = _difference(theirs, [outcome.images[number] for number in range(len(asked))])
        ratios.append(ours * seconds / len(asked))
    return point | {"ratio": statistics.median(ratios)}


def _drill(
    on_device: OnDevice, model: GpuModel, plan: Plan, device: torch.device, points: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Take so much memory away that all images together no longer fit, and see that none is lost."""
    side, together = plan.sides[-1], plan.together[-1]
    asked = _asked(model, side, plan, together)
    _, before = on_device.stock(asked[: plan.calls], 1)
    peaks = [
        point["engine"]["peak_gib"]
        for point in points
        if point["fits"] and (point["model"], point["side"], point["compiled"]) == (model.name, side, False)
    ]
    limit = None
    if device.type == "cuda":
        torch.cuda.empty_cache()
        limit = (peaks[0] + peaks[-1]) / 2
        whole = torch.cuda.get_device_properties(device).total_memory / GIB
        torch.cuda.set_per_process_memory_fraction(min(limit / whole, 1.0), device)
    else:
        on_device.forwards.most_rows = max(together * model.rows // 2, 1)
    try:
        outcome = on_device.engine(asked, together)
    finally:
        on_device.forwards.most_rows = None
        if device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, device)
    return {
        "model": model.name,
        "side": side,
        "together": together,
        "limit_gib": limit,
        "asked": len(asked),
        "made": len(outcome.images),
        "splits": outcome.splits,
        "difference": _difference(before, [outcome.images[number] for number in range(len(before))]),
    }


def _difference(some: Sequence[Image], others: Sequence[Image]) -> int:
    """Return the largest difference of a pixel's value, 0 to 255."""
    return max(
        int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())
        for one, other in zip(some, others, strict=True)
    )


def _line(point: Mapping[str, Any]) -> str:
    compiled = "compiled" if point["compiled"] else "eager"
    what = f"{point['model']} {point['side']}² {compiled}, {point['together']} together"
    if not point["fits"]:
        return f"{what}: does not fit"
    return f"{what}: {point['ratio']:.3f} of the offline loop, pixels differ by at most {point['difference']}"


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table as text."""
    lines = [
        f"{report['device']}, torch {report['torch']}, {report['steps']} steps; goal: at least {GOAL}.",
        "",
        "| model | side | compiled | images together | engine / loop, images/s | idle, engine | idle, loop"
        " | peak GiB, engine | peak GiB, loop | pixels differ by |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for point in report["points"]:
        compiled = "yes" if point["compiled"] else "no"
        cells = [point["model"], str(point["side"]), compiled, str(point["together"])]
        if point["fits"]:
            ours, theirs = point["engine"], point["stock"]
            cells += [f"{point['ratio']:.3f}", f"{ours['idle']:.1%}", f"{theirs['idle']:.1%}"]
            cells += [_gib(ours["peak_gib"]), _gib(theirs["peak_gib"]), str(point["difference"])]
        else:
            cells += ["does not fit", *[""] * 5]
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for drill in report["drills"]:
        limit = "rows" if drill["limit_gib"] is None else f"{drill['limit_gib']:.1f} GiB"
        lines.append(
            f"Out of memory on purpose, {drill['model']} at {drill['side']}, {drill['together']} together"
            f" within too little ({limit}): {drill['made']} of {drill['asked']} images made,"
            f" {drill['splits']} splits."
        )
    return "\n".join([*lines, ""])


def _gib(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _numbers(context: click.Context, option: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of numbers such as 1,2,4") from None


@click.command()
@click.option("--small", is_flag=True, help="Next to nothing, on the CPU.")
@click.option("--models", default="sdxl,flux", show_default=True)
@click.option("--sides", default="512,1024", show_default=True, callback=_numbers, help="Pixels.")
@click.option("--rows", default="1,2,4,8,16", show_default=True, callback=_numbers, help="Images at a time.")
@click.option("--steps", default=20, show_default=True)
@click.option("--compile/--no-compile", "compiles", default=True, help="Measure compiled models too.")
@click.option("--gpu", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks"), help="Where results go.")
def main(
    small: bool,
    models: str,
    sides: tuple[int, ...],
    rows: tuple[int, ...],
    steps: int,
    compiles: bool,
    gpu: int,
    out: Path,
) -> None:
    """Compare the engine with the stock pipeline's offline loop on this machine's GPU."""
    # diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
    warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
    diffusers.logging.set_verbosity_error()
    wanted = models.split(",")
    if small:
        torch.set_num_threads(1)
        device = torch.device("cpu")
        plan = Plan(SMALL, (64,), (1, 2), (False,), steps=2, repeats=1)
    elif torch.cuda.is_available():
        device = choose_device("cuda", gpu)
        torch.cuda.set_device(device)
        chosen = tuple(model for model in REAL if model.name in wanted)
        if len(chosen) < len(wanted):
            raise click.BadParameter(f"--models takes {', '.join(model.name for model in REAL)}, got {models!r}")
        plan = Plan(chosen, sides, rows, (False, True) if compiles else (False,), steps)
    else:
        raise click.UsageError("torch sees no CUDA device; --small runs next to nothing on the CPU")
    report = measure(plan, device, click.echo)
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(report, indent=1))
    (out / "gpu.md").write_text(markdown(report))
    click.echo(markdown(report))
    click.echo(f"wrote {out / 'gpu.json'} and {out / 'gpu.md'}")


if __name__ == "__main__":
    main()

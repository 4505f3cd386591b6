"""Continuous batching against static batching and the stock pipeline, on the CPU: `python -m benchmarks.batching`.

Every contender meets the same requests at the same times, in the same process and in turns, so that only ratios
within a run mean anything. See docs/performance.md.
"""

import os
import platform
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.batching import overhead, report, traffic
from benchmarks.batching.contenders import WAITS, Field, Outcome, contenders, run
from benchmarks.batching.models import MODELS
from benchmarks.batching.traffic import Arrival

MAX_BATCH_SIZE = 8
LOADS = (0.7, 1.1)
"""Arrivals a second under Poisson, over the images a second that the stock pipeline makes one by one."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run: by model requests, rounds, and pairs for the engine's own cost; waits and loads."""

    warm_up: int
    """Requests before the clock starts."""
    requests: Mapping[str, int]
    rounds: Mapping[str, int]
    pairs: Mapping[str, int]
    waits: tuple[float, ...]
    loads: tuple[float, ...]


# In the full run more requests warm up than run at a time, so that some leave and some join.
FULL = Size(12, {"tiny": 48, "mid": 20}, {"tiny": 3, "mid": 2}, {"tiny": 200, "mid": 40}, WAITS, LOADS)
QUICK = Size(1, {"tiny": 8}, {"tiny": 1}, {"tiny": 6}, (0.05,), (0.7,))


def measure(size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; return the report."""
    models = {}
    mode = os.environ.get("MKL_CBWR") or "default"  # decides whether images can be equal in every bit
    with tempfile.TemporaryDirectory() as folder:
        for model in MODELS:
            if model.name not in size.requests:
                continue
            with contenders(model.save(Path(folder)), max_batch_size=MAX_BATCH_SIZE, waits=size.waits) as field:
                models[model.name] = _measure_model(field, size, say)
    return {
        "machine": f"{torch.get_num_threads()} thread of {platform.machine()}, CPU, MKL's {mode} mode",
        "torch": torch.__version__,
        "max_batch_size": MAX_BATCH_SIZE,
        "models": models,
    }


def _measure_model(field: Field, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    name = field.model.name
    count = size.requests[name]
    rate = _rate(field, min(count, 16))
    kinds: dict[str, tuple[str, Callable[[int], list[Arrival]]]] = {
        "burst alike": (
            f"burst of {count}, all alike",
            lambda seed: traffic.burst(field.model, count, alike=True, seed=seed),
        ),
        "burst mixed": (f"burst of {count}, mixed", lambda seed: traffic.burst(field.model, count, seed=seed)),
    }
    for load in size.loads:
        kinds[f"poisson {load:g}"] = (
            f"Poisson at {load:g} of the stock pipeline's speed, mixed",
            lambda seed, load=load: traffic.poisson(field.model, count, load * rate, seed=seed),  # type: ignore[misc]
        )
    result: dict[str, Any] = {}
    for kind, (about, arrivals) in kinds.items():
        runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in field.contenders}
        for round_ in range(size.rounds[name]):
            for contender, serve in _turned(field.contenders, round_):
                asked = arrivals(round_)
                outcome = run(serve, asked, traffic.burst(field.model, size.warm_up, seed=-1))
                runs[contender].append(_figures(outcome, len(asked)))
                say(f"{name}, {kind}, round {round_ + 1}: {contender} {outcome.seconds:.2f} s")
        result[kind] = {
            "about": about,
            "ratios": report.ratios(runs),
            "figures": {contender: report.summary(each) for contender, each in runs.items()},
            "runs": runs,
        }
    own = overhead.measure(field, size.pairs[name])
    say(f"{name}: alone {own.ratio:.3f} of the stock call")
    pairs = {"ratio": own.ratio, "pairs": len(own.stock), "equal": own.equal}
    return {"traffic": result, "overhead": pairs}


def _turned(ways: Mapping[str, Any], by: int) -> list[tuple[str, Any]]:
    """Return the contenders, another one first in each round."""
    ordered = list(ways.items())
    by %= len(ordered)
    return ordered[by:] + ordered[:by]


def _rate(field: Field, count: int) -> float:
    """Return the images a second of the stock pipeline one by one."""
    outcome = run(field.contenders["one by one"], traffic.burst(field.model, count, seed=99))
    return count / outcome.seconds


def _figures(outcome: Outcome, count: int) -> dict[str, Any]:
    assert len(outcome.latencies) == count
    calls = outcome.calls
    return {
        "images_per_second": count / outcome.seconds,
        "latencies": [outcome.latencies[number] for number in range(count)],
        "images_per_forward": sum(call.requests for call in calls) / len(calls) if calls else 1.0,
    }


@click.command()
@click.option("--quick", is_flag=True, help="The tiny model only, once, in seconds: to see that all of it works.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks"), help="Where results go.")
def main(quick: bool, out: Path) -> None:
    """Compare ways of batching on the CPU, on one thread."""
    # diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
    warnings.filterwarnings("ignore", message="__array__ implementation", category=DeprecationWarning)
    torch.set_num_threads(1)
    result = measure(QUICK if quick else FULL, click.echo)
    files = report.write(result, out)
    click.echo(report.markdown(result))
    for file in files:
        click.echo(f"wrote {file}")
    if not any(file.suffix == ".png" for file in files):
        click.echo("no plot: matplotlib is not installed (pip install 'imagegen-fleet[bench]')")


if __name__ == "__main__":
    main()

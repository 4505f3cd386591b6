"""What a step of the broker costs, and how that grows: `python -m benchmarks.growth`."""

import gc
import json
from pathlib import Path
from typing import Any

import click

from benchmarks.growth.measure import STEPS, bytes_a_queued_request, cost_of, exponent
from benchmarks.growth.rig import Rig
from imagegen_broker.scheduling.strategies import STRATEGIES

BASE = {"workers": 16, "queued": 1000, "clients": 100}
SIZES = {
    "workers": (1, 10, 100, 1000),
    "queued": (1, 100, 10_000, 100_000),
    "clients": (1, 100, 1000, 10_000),
}
QUICK_BASE = {"workers": 4, "queued": 20, "clients": 5}
QUICK_SIZES = {"workers": (1, 8), "queued": (1, 40), "clients": (1, 10)}


def grow(
    dimension: str, sizes: tuple[int, ...], base: dict[str, int], strategy: str, times: int
) -> dict[str, Any]:
    """Return the CPU µs of each step at each size of one dimension, and of the work of each heartbeat interval."""
    costs: dict[str, list[float]] = {name: [] for name in STEPS}
    beats, statistics = [], []
    for size in sizes:
        shape = {**base, dimension: size}
        rig = Rig(workers=shape["workers"], queued=shape["queued"], clients=shape["clients"], strategy=strategy)
        gc.collect()
        for name, (step, share) in STEPS.items():
            costs[name].append(1e6 * cost_of(rig, step, max(1, int(times * share))))
        beats.append(1e6 * cost_of(rig, Rig.beats, 1))
        statistics.append(1e6 * cost_of(rig, Rig.statistics, 1))
    return {
        "dimension": dimension,
        "sizes": sizes,
        "strategy": strategy,
        "steps": costs,
        "an interval's heartbeats": beats,
        "statistics": statistics,
    }


def table(found: dict[str, Any]) -> str:
    """Return a table in Markdown: the cost at the least size, then what it is times at the others."""
    sizes = found["sizes"]
    heads = [f"{found['strategy']}, {found['dimension']}", f"CPU µs at {sizes[0]:,}"]
    lines = [_row([*heads, *(f"{size:,}" for size in sizes[1:]), "exponent"]), _row(["---"] * (len(sizes) + 2))]
    for name, costs in found["steps"].items():
        times = [f"× {cost / costs[0]:.2f}" for cost in costs[1:]]
        lines.append(_row([name, f"{costs[0]:.0f}", *times, f"{exponent(sizes, costs):.2f}"]))
    return "\n".join(lines)


def once(found: dict[str, Any]) -> str:
    """Return what is not on the way of a request: it costs a look at each peer, once an interval or on demand."""
    lines = []
    for name in ("an interval's heartbeats", "statistics"):
        costs = ", ".join(f"{cost / 1e3:.2f}" for cost in found[name])
        lines.append(f"{name} ({found['dimension']} {', '.join(map(str, found['sizes']))}): {costs} ms")
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


@click.command()
@click.option("--quick", is_flag=True, help="Small and short, to see that it works.")
@click.option("--strategy", "strategies", multiple=True, type=click.Choice(STRATEGIES), help="All unless given.")
@click.option("--times", default=1000, show_default=True, help="Requests for each figure, five times over.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks"), show_default=True)
def main(quick: bool, strategies: tuple[str, ...], times: int, out: Path) -> None:
    """Measure how the broker's steps grow."""
    sizes, base, times = (QUICK_SIZES, QUICK_BASE, 5) if quick else (SIZES, BASE, times)
    all_found = []
    for strategy in strategies or STRATEGIES:
        for dimension in sizes:
            found = grow(dimension, sizes[dimension], base, strategy, times)
            all_found.append(found)
            click.echo(f"{table(found)}\n\n{once(found)}\n")
    memory = bytes_a_queued_request(1000 if quick else 100_000)
    click.echo(f"memory of a request that waits, with a body of 300 bytes: {memory:.0f} bytes")
    out.mkdir(parents=True, exist_ok=True)
    (out / "growth.json").write_text(json.dumps({"found": all_found, "bytes_a_queued_request": memory}, indent=1))


if __name__ == "__main__":
    main()

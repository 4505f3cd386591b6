"""How much of the ideal a fleet reaches: `python -m benchmarks.scaling`."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from benchmarks.scaling import ideal, mixed, on_simulated_time, plot, traffic
from benchmarks.scaling.on_processes import Processes, processes
from benchmarks.simulated.device import Cost
from imagegen_broker.scheduling.strategies import STRATEGIES

ONE = Cost(batch_seconds=2.0, image_seconds=1.0)
"""Ten times the guide's example, that which a GPU needs; what is not the GPU's weighs as much as it does there."""
WORKERS = (1, 2, 4, 8, 16, 32, 64)
BURSTS = (50, 200, 1000)
LOADS = (0.5, 0.8, 0.95)
Row = dict[str, Any]


def fleets() -> dict[str, list[Cost]]:
    """Return the fleets of unlike workers by name."""
    dice = random.Random(3)
    return {
        "2 × 1.0, 2 × 2.5": [ONE] * 2 + [ONE._replace(slow=2.5)] * 2,
        "8, 1.0 to 3.0": [ONE._replace(slow=round(dice.uniform(1.0, 3.0), 2)) for _ in range(8)],
    }


def burst_rows(name: str, costs: list[Cost], bursts: tuple[int, ...], where: str) -> Iterator[Row]:
    """Yield, for each burst and strategy, the makespan and the share of the ideal, on simulated time."""
    for count in bursts:
        best = ideal.best_makespan(count, costs)
        for strategy in STRATEGIES:
            makespan = max(on_simulated_time.run(traffic.burst(count), costs, strategy))
            yield _burst_row(where, name, len(costs), count, strategy, best, makespan)


def _burst_row(where: str, fleet: str, workers: int, count: int, strategy: str, best: float, took: float) -> Row:
    return {
        "where": where,
        "fleet": fleet,
        "workers": workers,
        "requests": count,
        "strategy": strategy,
        "ideal": best,
        "makespan": took,
        "share": best / took,
    }


def poisson_rows(name: str, costs: list[Cost], loads: tuple[float, ...], count: int) -> Iterator[Row]:
    """Yield latencies under arrivals at random, over the lower bounds."""
    costs = [cost._replace(by_work=True) for cost in costs]
    for load in loads:
        per_second = load * traffic.capacity(costs) / traffic.mean_work(by_work=True)
        asked = traffic.poisson(count, per_second, seed=5)
        known, speed = traffic.as_asked(asked, costs)
        bounds = {
            "mean": ideal.least_mean(known, speed),
            "p95": ideal.least_quantile(known, speed, 0.95),
            "p99": ideal.least_quantile(known, speed, 0.99),
        }
        for strategy in STRATEGIES:
            found = sorted(on_simulated_time.run(asked, costs, strategy))
            yield {
                "fleet": name,
                "load": load,
                "strategy": strategy,
                "mean": sum(found) / len(found),
                "p95": found[int(0.95 * len(found))],
                "p99": found[int(0.99 * len(found))],
                "least": bounds,
            }


def real_rows(workers: tuple[int, ...], strategies: tuple[str, ...], scale: float, count: int) -> Iterator[Row]:
    """Yield the burst on real processes: alike workers, then unlike ones."""
    one = Cost(ONE.batch_seconds * scale, ONE.image_seconds * scale)
    with processes("round-robin") as fleet:
        for number in workers:
            yield _real(fleet, "alike", [one] * number, count, "round-robin")
    for strategy in strategies:
        costs = [one, one, one._replace(slow=2.5), one._replace(slow=2.5)]
        with processes(strategy) as fleet:
            yield _real(fleet, "2 × 1.0, 2 × 2.5", costs, 4 * count, strategy)


def _real(fleet: Processes, name: str, costs: list[Cost], count: int, strategy: str) -> Row:
    fleet.grow(costs)
    fleet.run(traffic.burst(1))  # the grace of a new broker is over
    took = max(fleet.run(traffic.burst(count)))
    best = ideal.best_makespan(count, costs)
    return _burst_row("processes", name, len(costs), count, strategy, best, took)


def show_burst(row: Row) -> str:
    """Return a row of the table in Markdown."""
    cells = (row["where"], row["fleet"], row["workers"], row["requests"], row["strategy"])
    return f"| {' | '.join(map(str, cells))} | {row['ideal']:.2f} | {row['makespan']:.2f} | {row['share']:.3f} |"


def show_poisson(row: Row) -> str:
    """Return a row of the table in Markdown: each latency, and what it is over the lower bound."""
    parts = [f"{row[key]:.1f} ({row[key] / row['least'][key]:.2f})" for key in ("mean", "p95", "p99")]
    return f"| {row['fleet']} | {row['load']:.0%} | {row['strategy']} | {' | '.join(parts)} |"


@click.command()
@click.option("--quick", is_flag=True, help="Small and short, to see that it works.")
@click.option("--real/--no-real", default=True, help="Also with processes; a quarter of an hour.")
@click.option(
    "--scale", default=0.5, show_default=True, help="Of the processes' cost model: 2 s a batch, 1 s an image."
)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks"), show_default=True)
def main(quick: bool, real: bool, scale: float, out: Path) -> None:
    """Measure how much of the ideal a fleet reaches."""
    found: dict[str, list[Row]] = {"bursts": [], "poisson": [], "mixed": []}
    click.echo("| where | workers | number | requests | strategy | ideal s | makespan s | share |")
    click.echo("|---|---|---|---|---|---|---|---|")
    sizes, bursts = ((1, 4), (50,)) if quick else (WORKERS, BURSTS)

    def add(rows: Iterator[Row]) -> None:
        for row in rows:
            found["bursts"].append(row)
            click.echo(show_burst(row))

    for number in sizes:
        add(burst_rows("alike", [ONE] * number, bursts, "simulated time"))
    for name, costs in fleets().items():
        add(burst_rows(name, costs, (50,) if quick else (50, 100, 200, 400, 1000), "simulated time"))
    if real:
        add(
            real_rows((1, 2), ("least-wait",), scale, 8)
            if quick
            else real_rows(WORKERS, tuple(STRATEGIES), scale, 50)
        )
    click.echo("\n| workers | load | strategy | mean s (over the least possible) | p95 | p99 |")
    click.echo("|---|---|---|---|---|---|")
    for name, costs in {"4 alike": [ONE] * 4, **fleets()}.items():
        for row in poisson_rows(name, costs, (0.8,) if quick else LOADS, 100 if quick else 3000):
            found["poisson"].append(row)
            click.echo(show_poisson(row))
    click.echo("\n| workers | forward | load | strategy | mean s (ratio) | p95 | p99 | slowdown | within 5 |")
    click.echo("|---|---|---|---|---|---|---|---|---|")
    count, loads, seeds = (60, (0.8,), (1,)) if quick else (1000, mixed.LOADS, (1, 2))
    for row in mixed.rows(count, loads, seeds, tuple(STRATEGIES)):
        found["mixed"].append(row)
        click.echo(mixed.show(row))
    out.mkdir(parents=True, exist_ok=True)
    (out / "scaling.json").write_text(json.dumps(found, indent=1))
    plot.draw(found, out / "scaling.png")


if __name__ == "__main__":
    main()

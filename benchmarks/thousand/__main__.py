"""A day of a thousand GPUs on simulated time: `python -m benchmarks.thousand`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.thousand import plot
from benchmarks.thousand.day import Day
from benchmarks.thousand.run import Fleet, Found
from imagegen_broker.scheduling.strategies import STRATEGIES


def quantile(values: list[float], share: float) -> float:
    """Return a value that so many are not above."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def fairness(found: Found) -> dict[str, float]:
    """Return how alike clients are served: Jain's index of their median latencies, and the worst over the median.

    Only of clients with twenty requests and more. 1 is alike; 1/n: one of n has all.
    """
    medians = [
        quantile([latency for _, latency in each], 0.5) for each in found.by_client.values() if len(each) >= 20
    ]
    if not medians:
        return {"clients": 0, "jain": 1.0, "worst": 1.0}
    jain = sum(medians) ** 2 / (len(medians) * sum(value * value for value in medians))
    return {"clients": len(medians), "jain": jain, "worst": max(medians) / quantile(medians, 0.5)}


def summary(found: Found) -> dict[str, Any]:
    """Return the figures of a day."""
    day, totals = found.day, found.totals
    at_work = sum(busy for _, busy, _, _ in found.samples) / sum(workers for *_, workers in found.samples)
    floor = day.batch_seconds + day.image_seconds
    return {
        "workers": day.workers,
        "hosts": day.hosts,
        "requests": found.asked,
        "answered": len(found.latencies),
        "failed": dict(found.failed),
        "utilisation": at_work,
        "latency": {name: quantile(found.latencies, share) for name, share in _SHARES.items()},
        "latency over a request alone": {
            name: quantile(found.latencies, share) / floor for name, share in _SHARES.items()
        },
        "fairness": fairness(found),
        "requeued": totals["requeued"],
        "workers lost": totals["workers_lost"],
        "given out a request": totals["dispatched"] / len(found.latencies),
        "broker CPU µs a request, heartbeats included": 1e6 * found.broker_seconds / found.asked,
        "broker CPU, share of a core": found.broker_seconds / found.elapsed,
        "events": found.events,
        "events a CPU second": found.events / found.seconds,
        "CPU seconds": found.seconds,
        "day": asdict(day),
    }


_SHARES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@click.command()
@click.option("--quick", is_flag=True, help="Two hosts and an hour, to see that it works.")
@click.option("--strategy", type=click.Choice(STRATEGIES), default="least-wait", show_default=True)
@click.option("--load", type=click.FloatRange(0.01, 2.0), default=0.6, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks"), show_default=True)
def main(quick: bool, strategy: str, load: float, out: Path) -> None:
    """Live a day through with a thousand workers."""
    day = Day(strategy=strategy, load=load)
    if quick:
        day = replace(
            day, hosts=2, seconds=3600.0, batch_seconds=16.0, image_seconds=8.0, heartbeat_seconds=20.0,
            bursts=1, clients=5, worker_deaths=2, host_deaths=1,
        )  # fmt: skip
    found = Fleet(day).run()
    told = summary(found)
    click.echo(json.dumps(told, indent=1))
    out.mkdir(parents=True, exist_ok=True)
    (out / "thousand.json").write_text(json.dumps(told, indent=1))
    plot.draw(found, out / "thousand.png")


if __name__ == "__main__":
    main()

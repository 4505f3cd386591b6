"""The client beside a bare socket, at one broker with workers that do nothing: `python -m benchmarks.client`."""

import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.about import about
from benchmarks.client import report
from benchmarks.client.ways import WAYS, Run, in_child, many
from benchmarks.client.worker import MODEL
from imagegen_client import Client
from tools.fleet import Fleet

WINDOWS = (1, 64)


@dataclass(frozen=True, slots=True)
class Size:
    """How much is run."""

    rounds: int
    requests: dict[int, int]
    """By window."""
    mapped: int
    processes: int
    seconds: float
    """Of the many processes."""


FULL = Size(5, {1: 3000, 64: 10_000}, 10_000, 100, 8.0)
QUICK = Size(1, {1: 100, 64: 300}, 400, 5, 0.5)


def measure(size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Run everything; return the figures."""
    with tempfile.TemporaryDirectory() as folder, Fleet(log_folder=Path(folder)) as fleet:
        # A bare socket never asks again: nobody may be taken for dead, however busy the machine is.
        fleet.start_broker("--default-model", MODEL, "--liveness", "60")
        python, backend = Path(sys.executable).name, next(iter(fleet.brokers.values())).backend
        fleet.spawn("noop", [python, "-m", "benchmarks.client.worker", "--broker", backend, "--name", "noop"])
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, 1)
        return {
            "exchange": {window: _exchange(fleet.frontend, window, size, say) for window in WINDOWS},
            "map": {way: _mapped(fleet.frontend, way, size.mapped, say) for way in WAYS},
            "processes": {way: _crowd(fleet.frontend, way, size, say) for way in ("bare socket", "Client")},
        }


def _exchange(broker: str, window: int, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    """Run all ways in turns, another one first in each round."""
    runs: dict[str, list[Run]] = {way: [] for way in WAYS}
    for round_ in range(size.rounds):
        ways = list(WAYS)
        for way in ways[round_ % len(ways) :] + ways[: round_ % len(ways)]:
            run = in_child(way, broker, size.requests[window], window)
            runs[way].append(run)
            say(f"{window} on the way, round {round_ + 1}: {way} {run.rate:.0f} requests/s")
    figures = {}
    for way, own in runs.items():
        figures[way] = {
            "rate": statistics.median(run.rate for run in own),
            "cpu": statistics.median(run.cpu_each for run in own),
            # Round by round, where the machine's mood is the same.
            "rate_ratio": statistics.median(
                run.rate / base.rate for run, base in zip(own, runs["bare socket"], strict=True)
            ),
            "cpu_ratio": statistics.median(
                run.cpu_each / base.cpu_each for run, base in zip(own, runs["bare socket"], strict=True)
            ),
            "latency": report.latency([run.latencies for run in own if run.latencies]),
        }
    return figures


def _mapped(broker: str, way: str, count: int, say: Callable[[str], None]) -> dict[str, Any]:
    run = in_child(way, broker, count, 256, look=True)
    say(f"map of {count}: {way} {run.seconds / count * 1e6:.0f} µs a request")
    used = [uss for _, uss in run.memory]
    settled = used[len(used) // 5 :]
    return {
        "requests": count,
        "seconds_each": run.seconds / count,
        "cpu_each": run.cpu_each,
        "memory": run.memory,
        "start": used[0],
        "peak": max(used),
        "growth": settled[-1] - settled[0],
    }


def _crowd(broker: str, way: str, size: Size, say: Callable[[str], None]) -> dict[str, Any]:
    runs = many(way, broker, size.processes, size.seconds)
    counts = [run.requests for run in runs]
    rate = sum(run.rate for run in runs)
    say(f"{size.processes} processes: {way} {rate:.0f} requests/s, each {min(counts)} to {max(counts)}")
    return {
        "processes": size.processes,
        "requests": sum(counts),
        "rate": rate,
        "least": min(counts),
        "most": max(counts),
        "latency": report.latency([run.latencies for run in runs]),
    }


@click.command()
@click.option("--quick", is_flag=True, help="Next to nothing, to see that all of it works.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks/client"), show_default=True)
def main(quick: bool, out: Path) -> None:
    """Measure what the client costs beside a bare socket."""
    figures = measure(QUICK if quick else FULL, click.echo)
    out.mkdir(parents=True, exist_ok=True)
    (out / "client.json").write_text(json.dumps(figures, indent=1))
    lines = ["# The client", "", *about(), "", *report.tables(figures)]
    (out / "report.md").write_text("\n".join(lines) + "\n")
    report.plot(figures, out / "client.png")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()

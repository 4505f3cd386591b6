"""What the broker costs: `python -m benchmarks.broker [--quick] [--profile]`. README.md says how it measures."""

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import click
import psutil

from benchmarks.about import about
from benchmarks.broker import report
from benchmarks.broker.contenders import CONTENDERS, DIRECT, Started, started
from benchmarks.broker.point import Point
from benchmarks.broker.profile import profile
from benchmarks.broker.rig import Tally
from benchmarks.latency import Latencies
from imagegen_common.command_line import IntegerRange, NumberRange

OUTSTANDING = (1, 64, 1000)
SHARES = (0.3, 0.6, 0.9)
"""Of what imagegen's broker does at most: the rates at which requests come, whether or not it keeps up."""
SMALL_BYTES = 1000
SIZES = (100_000, 1_000_000, 3_000_000)
AT_A_TIME = 32
"""Large results outstanding."""
WARM_UP_SECONDS = 0.3


def measure(contender: Started, load: str, amount: float, seconds: float) -> Point:
    """Run one load ("outstanding" or "at_rate") and return its figures."""
    process = None if contender.pid is None else psutil.Process(contender.pid)
    before = cpu_seconds(process)
    tally: Tally = getattr(contender.rig, load)(amount, seconds)
    spent = cpu_seconds(process) - before
    latencies = Latencies()
    for latency in tally.latencies:
        latencies.record(latency)
    p50, p99, p999 = (latencies.percentile(share) for share in (50, 99, 99.9))
    cpu = spent / len(tally.latencies)
    memory = 0 if process is None else process.memory_info().rss
    return Point(tally.answers / tally.seconds, p50, p99, p999, cpu, memory)


def cpu_seconds(process: psutil.Process | None) -> float:
    """Return the CPU time of a process; none without one."""
    return 0.0 if process is None else sum(process.cpu_times()[:2])


def median(points: list[Point]) -> Point:
    """Return the medians of several runs, each figure for itself; of memory, the last."""
    middle = {name: statistics.median(getattr(point, name) for point in points) for name in Point.__slots__}
    return Point(**{**middle, "memory": points[-1].memory})


def small_results(rounds: int, seconds: float, logs: Path) -> dict[str, dict[str, Point]]:
    """Return by load and by contender what small results cost; the contenders take turns."""
    closed: dict[str, dict[str, list[Point]]] = {str(n): defaultdict(list) for n in OUTSTANDING}
    opened: dict[str, dict[str, list[Point]]] = {str(share): defaultdict(list) for share in SHARES}
    most = 0.0
    for _ in range(rounds):
        for name in (*reversed(CONTENDERS), DIRECT):  # imagegen first: its speed sets the rates
            with started(name, SMALL_BYTES, logs) as contender:
                for count in OUTSTANDING:
                    contender.rig.outstanding(count, WARM_UP_SECONDS)
                    closed[str(count)][name].append(measure(contender, "outstanding", count, seconds))
                most = most or closed["64"]["imagegen"][0].a_second
                for share in SHARES:
                    opened[str(share)][name].append(measure(contender, "at_rate", share * most, seconds))
    return {load: {name: median(runs) for name, runs in by.items()} for load, by in {**closed, **opened}.items()}


def large_results(rounds: int, seconds: float, logs: Path) -> dict[str, dict[str, Point]]:
    """Return by size and by contender what large results cost."""
    found: dict[str, dict[str, list[Point]]] = {str(size): defaultdict(list) for size in SIZES}
    for _ in range(rounds):
        for size in SIZES:
            for name in CONTENDERS:
                with started(name, size, logs) as contender:
                    contender.rig.outstanding(AT_A_TIME, WARM_UP_SECONDS)
                    first = psutil.Process(contender.pid).memory_info().rss
                    point = measure(contender, "outstanding", AT_A_TIME, seconds)
                    found[str(size)][name].append(replace(point, memory=point.memory - first))
    return {size: {name: median(runs) for name, runs in by.items()} for size, by in found.items()}


def as_json(tables: Mapping[str, Mapping[str, Mapping[str, Point]]]) -> str:
    """Return all figures."""
    return json.dumps(tables, default=asdict, indent=1)


@click.command()
@click.option("--quick", is_flag=True, help="Tenths of seconds for each figure: to see that it works.")
@click.option("--rounds", type=IntegerRange(1), default=5, show_default=True)
@click.option("--seconds", type=NumberRange(0.1), default=3.0, show_default=True, help="For each figure.")
@click.option("--profile", "profiled", is_flag=True, help="Say where the broker's time goes, in a run of its own.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out/benchmarks/broker"), show_default=True)
def main(quick: bool, rounds: int, seconds: float, profiled: bool, out: Path) -> None:
    """Measure the broker beside libzmq's proxy and a bare loop in Python."""
    out.mkdir(parents=True, exist_ok=True)
    if quick:
        rounds, seconds = 1, 0.3
    small = small_results(rounds, seconds, out / "logs")
    large = large_results(max(1, rounds // 2), seconds, out / "logs")
    lines = ["# The broker", "", *about(), "", *report.small(small), "", *report.large(large)]
    if profiled or quick:
        lines += ["", *profile(64, seconds, out)]
    (out / "report.md").write_text("\n".join(lines) + "\n")
    (out / "figures.json").write_text(as_json({"small": small, "large": large}))
    report.plot(small, large, out / "broker.png")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()

"""Figures of the broker's benchmark as tables and a picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.broker.point import Point

Table = Mapping[str, Mapping[str, Point]]


def small(table: Table) -> list[str]:
    """Return what small results cost as Markdown: so many outstanding first, then at rates."""
    head = (
        "| outstanding | | requests/s | of the bare loop's | CPU µs a request | p50 ms | p99 ms | added to p50 |"
    )
    lines = [head]
    lines += ["|---|---|---|---|---|---|---|---|"]
    for load, by in table.items():
        if load.isdigit():
            for name, point in by.items():
                share = point.a_second / by["bare"].a_second
                figures = f"{point.a_second:,.0f} | {share:.2f} | {point.cpu * 1e6:.0f}"
                added = _ms(point.p50 - by["direct"].p50)
                lines.append(f"| {load} | {name} | {figures} | {_ms(point.p50)} | {_ms(point.p99)} | {added} |")
    lines += ["", "| requests come, a second | | p50 ms | p99 ms | p99.9 ms |", "|---|---|---|---|---|"]
    most = table["64"]["imagegen"].a_second
    for load, by in table.items():
        if not load.isdigit():
            for name, point in by.items():
                rate = f"{most * float(load):,.0f} ({load} of imagegen's most)"
                lines.append(f"| {rate} | {name} | {_ms(point.p50)} | {_ms(point.p99)} | {_ms(point.p999)} |")
    return lines


def large(table: Table) -> list[str]:
    """Return what large results cost as Markdown."""
    lines = ["| MB a result | | MB/s | of the proxy's | CPU µs a result | memory grew by MiB |"]
    lines += ["|---|---|---|---|---|---|"]
    for size, by in table.items():
        for name, point in by.items():
            share = point.a_second / by["proxy"].a_second
            megabytes = int(size) / 1e6
            figures = f"{point.a_second * megabytes:,.0f} | {share:.2f} | {point.cpu * 1e6:.0f}"
            lines.append(f"| {megabytes:g} | {name} | {figures} | {point.memory / 2**20:.0f} |")
    return lines


def plot(few: Table, many: Table, path: Path) -> None:
    """Draw requests a second by what is outstanding, and MB a second by size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    closed = {load: by for load, by in few.items() if load.isdigit()}
    _bars(left, closed, lambda load, point: point.a_second / 1000, "thousand requests a second", "outstanding")
    sizes = {f"{int(size) / 1e6:g}": by for size, by in many.items()}
    _bars(right, sizes, lambda size, point: point.a_second * float(size), "MB a second", "MB a result")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _bars(axes: Any, table: Table, value: Any, label: str, below: str) -> None:
    names = list(next(iter(table.values())))
    for index, name in enumerate(names):
        places = [place + (index - (len(names) - 1) / 2) * 0.8 / len(names) for place in range(len(table))]
        axes.bar(
            places, [value(load, by[name]) for load, by in table.items()], width=0.75 / len(names), label=name
        )
    axes.set_xticks(range(len(table)), list(table))
    axes.set_xlabel(below)
    axes.set_ylabel(label)
    axes.legend()


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f}"

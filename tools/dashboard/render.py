"""Rendering of the dashboard with matplotlib from a Prometheus, without Grafana."""

import math
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from tools.dashboard.panels import FLEET, GATEWAY, GPU, Panel
from tools.dashboard.prometheus import Prometheus, Series

_COLUMNS = 4
_POINTS = 120
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""), (1e-3, "m"))
_MAX_LINES = 4
_UNITS = {"s": "s", "bytes": "B", "watt": "W", "hertz": "Hz", "reqps": "/s"}


def render(out: Path, url: str, *, seconds: float, window: str, gpus: int | None = None) -> list[str]:
    """Render the last `seconds` of all panels into a PNG; return the titles of panels without data."""
    prometheus = Prometheus(url, window)
    workers = prometheus.label_values("imagegen_worker_warm", "worker")[:gpus]
    cells: list[tuple[Panel, str, str | None]] = [(panel, panel.title, None) for panel in FLEET]
    if prometheus.label_values("imagegen_gateway_build_info", "version"):
        cells += [(panel, f"gateway: {panel.title}", None) for panel in GATEWAY]
    cells += [(panel, f"{worker}: {panel.title}", worker) for worker in workers for panel in GPU]
    rows = math.ceil(len(cells) / _COLUMNS)
    figure, axes = pyplot.subplots(rows, _COLUMNS, figsize=(16, 2.3 * rows), squeeze=False, layout="constrained")
    end, empty = time.time(), []
    for axis, (panel, title, worker) in zip(axes.flat, cells, strict=False):
        if not _draw_panel(axis, panel, prometheus, title, (end - seconds, end), worker):
            empty.append(title)
    for axis in axes.flat[len(cells) :]:
        axis.set_axis_off()
    figure.savefig(out, dpi=80)
    pyplot.close(figure)
    return empty


def _draw_panel(
    axis: Axes, panel: Panel, prometheus: Prometheus, title: str, span: tuple[float, float], worker: str | None
) -> bool:
    start, end = span
    lines: list[tuple[str, Series]] = []
    for query in panel.queries:
        for series in prometheus.range(query.expr, start, end, (end - start) / _POINTS, worker):
            if series.has_data:
                lines.append((legend(query.legend, series), series))
    if len(lines) > _MAX_LINES:
        lines = [line for line in lines if any(value > 0 for value in line[1].values)] or lines[:_MAX_LINES]
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_xlim(start - end, 0)
    axis.tick_params(labelsize=7)
    axis.grid(alpha=0.25)
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_unit(value, panel.unit)))
    axis.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 3, 6, 10]))  # whole minutes
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:.0f} s" if end - start < 180 else f"{value / 60:.0f} min")
    )
    if panel.kind == "stat" and lines:
        last = next(value for value in reversed(lines[0][1].values) if math.isfinite(value))
        axis.text(
            0.5, 0.5, in_unit(last, panel.unit), transform=axis.transAxes, fontsize=26, ha="center", va="center"
        )
    _draw_lines(axis, lines, end, stacked=panel.stacked, faint=panel.kind == "stat")
    axis.set_ylim(bottom=0)
    return bool(lines)


def _draw_lines(
    axis: Axes, lines: Sequence[tuple[str, Series]], end: float, *, stacked: bool, faint: bool
) -> None:
    if stacked and lines:
        times = sorted({moment for _, series in lines for moment in series.times})
        values = [_at(series, times) for _, series in lines]
        axis.stackplot([moment - end for moment in times], values, labels=[name for name, _ in lines], alpha=0.7)
    else:
        for name, series in lines:
            times = [moment - end for moment in series.times]
            axis.plot(times, series.values, label=name, linewidth=1.2, alpha=0.3 if faint else 1.0)
    if any(name for name, _ in lines):
        axis.legend(fontsize=6, loc="upper left", ncols=2, framealpha=0.6)


def _at(series: Series, times: Sequence[float]) -> list[float]:
    known: dict[Any, float] = dict(zip(series.times, series.values, strict=True))
    return [value if math.isfinite(value := known.get(moment, 0.0)) else 0.0 for moment in times]


def legend(form: str, series: Series) -> str:
    """Return a legend in Grafana's format with the labels of a series substituted."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: series.labels.get(match[1], ""), form)


def in_unit(value: float, unit: str) -> str:
    """Return a short text for a value in one of Grafana's units."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "celsius":
        return f"{value:.0f} °C"
    prefixes = _PREFIXES if unit == "s" else _PREFIXES[:-1]  # only seconds have a milli prefix
    size, prefix = next(((size, prefix) for size, prefix in prefixes if abs(value) >= size), (1.0, ""))
    return f"{value / size:.3g} {prefix}{_UNITS.get(unit, '')}".strip()

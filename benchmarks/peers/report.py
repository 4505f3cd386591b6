"""Figures of all peers as one JSON document, a table and a picture; rates and latencies over imagegen's."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OURS = "imagegen"
BEGIN, END = "<!-- peers: from a script -->", "<!-- peers: end -->"


@dataclass(frozen=True, slots=True)
class Column:
    """One figure of each peer."""

    key: str
    title: str
    more_is_better: bool = False
    whole: bool = False
    """A count, not a ratio."""

    def shown(self, figure: float) -> str:
        """Return the figure as text."""
        if self.whole:
            return f"{figure:.0f}"
        return f"{figure:.2f}" if figure < 100 else f"{figure:.0f}"


COLUMNS = (
    Column("rate_1", "requests/s, 1 at a time", more_is_better=True),
    Column("rate_64", "requests/s, 64 at a time", more_is_better=True),
    Column("p50_1", "p50, 1"),
    Column("p99_1", "p99, 1"),
    Column("p50_64", "p50, 64"),
    Column("p99_64", "p99, 64"),
    Column("burst", "burst of 50, 4 workers"),
    Column("alike", "mixed speeds, alike"),
    Column("unequal", "mixed speeds, unequal"),
    Column("lost", "lost of 200", whole=True),
    Column("errors", "of these told", whole=True),
    Column("ended_again", "ended twice", whole=True),
)
RANKED = tuple(column for column in COLUMNS if column.key != "errors")
"""To be told of a loss is better than not, and worse than none: the column of losses has them all."""


def figures(told: Mapping[str, Any], ours: Mapping[str, Any], ideals: Mapping[str, float]) -> dict[str, float]:
    """Return one peer's figures by column; `told` and `ours` have each scenario's results, if it went well."""
    found: dict[str, float] = {}
    pairs = list(zip(told.get("noop", ()), ours.get("noop", ()), strict=False))
    for outstanding in ("1", "64"):
        for key in ("rate", "p50", "p99"):
            # Round by round, where the machine's mood is the same.
            ratios = [mine[outstanding][key] / its[outstanding][key] for mine, its in pairs if mine and its]
            if ratios:
                found[f"{key}_{outstanding}"] = statistics.geometric_mean(ratios)
    if burst := told.get("burst"):
        found["burst"] = statistics.median(burst["seconds"]) / ideals["burst"]
    if mixed := told.get("mixed"):
        for key in ("alike", "unequal"):
            found[key] = statistics.median(mixed[key]) / ideals["mixed"]
    if kill := told.get("kill"):
        found |= {"lost": kill["silent"] + kill["errors"], "errors": kill["errors"]}
        found["ended_again"] = kill["ended_again"]
    return found


def best(table: Mapping[str, Mapping[str, float]], column: Column) -> float:
    """Return the best figure of a column."""
    known = [row[column.key] for row in table.values() if column.key in row]
    return (max if column.more_is_better else min)(known, default=math.nan)


def markdown(report: Mapping[str, Any]) -> str:
    """Return the table as text, the best of each column bold."""
    table = report["ratios"]
    lines = [f"| | {' | '.join(column.title for column in COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
    for name, peer in report["peers"].items():
        cells = []
        for column in COLUMNS:
            figure = table[name].get(column.key)
            if figure is None:
                cells.append("–")
                continue
            shown = column.shown(figure)
            leads = column in RANKED and shown == column.shown(best(table, column))
            cells.append(f"**{shown}**" if leads else shown)
        lines.append(f"| {peer['title']} | {' | '.join(cells)} |")
    lines += [
        "",
        "Rates and latencies are over imagegen's, bursts over the best possible in the cost model; the best of "
        "each column is bold.",
        f"{report['machine']}, commit {report['commit']}.",
        "",
    ]
    lines += [f"- **{peer['title']}** ({peer['version']}): {peer['note']}" for peer in report["peers"].values()]
    failures = [
        f"- {peer['title']} failed at `{scenario}`: {what}"
        for peer in report["peers"].values()
        for scenario, what in peer["failures"].items()
    ]
    return "\n".join([*lines, *failures]) + "\n"


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write all there is into a folder; return the files. Without matplotlib there is no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    data, table = folder / "peers.json", folder / "peers.md"
    data.write_text(json.dumps(report, indent=1))
    table.write_text(markdown(report))
    return [data, table, *_plot(report, folder / "peers.png")]


def insert(report: Mapping[str, Any], page: Path) -> None:
    """Put the table between its two marks in a page. Raises `ValueError` where there are none."""
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no place for the table: {BEGIN} … {END}")
    page.write_text(f"{before}{BEGIN}\n{markdown(report)}{END}{after}")


def _plot(report: Mapping[str, Any], path: Path) -> list[Path]:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels: Sequence[tuple[str, tuple[str, ...], str, bool]] = (
        ("No-op work: requests/s", ("rate_1", "rate_64"), "over imagegen's", True),
        ("No-op work: latency", ("p50_1", "p99_1", "p50_64", "p99_64"), "over imagegen's", True),
        ("Bursts: makespan", ("burst", "alike", "unequal"), "over the best possible", False),
        ("A worker killed amid 200 requests", ("lost", "ended_again"), "requests", False),
    )
    titles = {column.key: column.title for column in COLUMNS}
    names = list(report["peers"])
    figure, axes = pyplot.subplots(2, 2, figsize=(12, 8), layout="constrained")
    for axis, (title, keys, label, logarithmic) in zip(axes.flat, panels, strict=True):
        width = 0.8 / len(keys)
        for at, key in enumerate(keys):
            heights = [report["ratios"][name].get(key, math.nan) for name in names]
            axis.bar([i + at * width for i in range(len(names))], heights, width, label=titles[key])
        axis.set_xticks(
            [i + 0.4 - width / 2 for i in range(len(names))],
            [report["peers"][name]["title"] for name in names],
            rotation=20,
        )
        axis.set(title=title, ylabel=label, **({"yscale": "log"} if logarithmic else {}))
        if label != "requests":
            axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return [path]

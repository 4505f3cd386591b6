"""Draws how much of the ideal is reached."""

from pathlib import Path
from typing import Any


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Write a PNG: how many times faster than one worker, and unlike workers by strategy."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return  # it is an extra of its own
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    alike = [row for row in found["bursts"] if row["fleet"] == "alike"]
    for where, mark in (("simulated time", "o-"), ("processes", "x")):
        rows = [r for r in alike if r["where"] == where and r["requests"] == 50 and r["strategy"] == "round-robin"]
        if rows:
            one = rows[0]["makespan"]
            left.plot([r["workers"] for r in rows], [one / r["makespan"] for r in rows], mark, label=where)
            if where == "simulated time":
                best = [rows[0]["ideal"] / r["ideal"] for r in rows]
                left.plot([r["workers"] for r in rows], best, "k--", lw=1, label="best possible split")
    left.set(xscale="log", yscale="log", xlabel="workers", ylabel="times faster than one", title="A burst of 50")
    left.legend()
    unlike = [r for r in found["bursts"] if r["fleet"].startswith("2 ×") and r["where"] == "simulated time"]
    for strategy in dict.fromkeys(row["strategy"] for row in unlike):
        rows = [row for row in unlike if row["strategy"] == strategy]
        right.plot([r["requests"] for r in rows], [r["share"] for r in rows], "o-", label=strategy)
    right.set(xscale="log", ylim=(0, 1.05), xlabel="requests in the burst", title="2 workers of 1.0 and 2 of 2.5")
    right.set_ylabel("share of the ideal")
    right.legend()
    figure.savefig(path, dpi=110)

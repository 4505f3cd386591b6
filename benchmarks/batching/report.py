"""Figures of many runs as one JSON document, a table and a picture. Everything is a ratio to `continuous`."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = "continuous"


def summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return one contender's figures for one kind of traffic, over all rounds.

    `images_per_second` is the median of the rounds; latencies in seconds, of the requests of all rounds together.
    """
    latencies = sorted(second for run in runs for second in run["latencies"])
    return {
        "images_per_second": statistics.median(run["images_per_second"] for run in runs),
        "mean_latency": statistics.fmean(latencies),
        "p50_latency": quantile(latencies, 0.50),
        "p99_latency": quantile(latencies, 0.99),
        "images_per_forward": statistics.fmean(run["images_per_forward"] for run in runs),
    }


def ratios(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return each contender's figures over those of `continuous`.

    Throughput is compared round by round, where the machine's mood is the same, and the median is taken.
    """
    ours = summary(runs[OURS])
    table = {}
    for name, mine in runs.items():
        figures = summary(mine)
        table[name] = {key: figures[key] / ours[key] for key in ("mean_latency", "p50_latency", "p99_latency")}
        table[name]["images_per_second"] = statistics.median(
            a["images_per_second"] / b["images_per_second"] for a, b in zip(mine, runs[OURS], strict=True)
        )
    return table


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return the smallest value that at least a share `q` of them does not exceed."""
    return ordered[max(math.ceil(q * len(ordered)) - 1, 0)]


def markdown(report: Mapping[str, Any]) -> str:
    """Return the tables as text."""
    lines = []
    for model, about in report["models"].items():
        for kind, traffic in about["traffic"].items():
            lines += [
                f"### {model}, {traffic['about']}",
                "",
                "| | images/s | mean latency | p50 | p99 | images a forward |",
                "|---|---|---|---|---|---|",
            ]
            for name, ratio in traffic["ratios"].items():
                figures = [
                    ratio[key] for key in ("images_per_second", "mean_latency", "p50_latency", "p99_latency")
                ]
                shared = traffic["figures"][name]["images_per_forward"]
                lines.append(f"| {name} | {' | '.join(f'{figure:.2f}' for figure in figures)} | {shared:.1f} |")
            lines.append("")
            assert kind
        if "overhead" in about:
            own = about["overhead"]
            lines += [
                f"One request alone, {model}: {own['ratio']:.3f} of the stock call's time, the median of"
                f" {own['pairs']} pairs; {own['equal']} of them gave images equal in every bit, on this machine.",
                "",
            ]
    return "\n".join(lines)


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write all there is into a folder; return the files. Without matplotlib there is no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    data, table = folder / "engine.json", folder / "engine.md"
    data.write_text(json.dumps(report, indent=1))
    table.write_text(markdown(report))
    return [data, table, *_plot(report, folder / "engine.png")]


def _plot(report: Mapping[str, Any], path: Path) -> list[Path]:
    try:
        import matplotlib
    except ModuleNotFoundError:
        return []
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = len(report["models"])
    figure, axes = pyplot.subplots(rows, 2, figsize=(11, 4 * rows), squeeze=False, layout="constrained")
    for (left, right), (model, about) in zip(axes, report["models"].items(), strict=True):
        bursts = {kind: traffic for kind, traffic in about["traffic"].items() if not kind.startswith("poisson")}
        names = list(next(iter(about["traffic"].values()))["ratios"])
        width = 0.8 / max(len(bursts), 1)
        for at, traffic in enumerate(bursts.values()):
            heights = [traffic["ratios"][name]["images_per_second"] for name in names]
            left.bar([i + at * width for i in range(len(names))], heights, width, label=traffic["about"])
        left.axhline(1.0, color="grey", linewidth=0.8)
        left.set_xticks([i + 0.4 - width / 2 for i in range(len(names))], names, rotation=20)
        left.set(title=f"{model}: throughput", ylabel="images/s over continuous")
        left.legend(fontsize="small")
        kinds = [kind for kind in about["traffic"] if kind.startswith("poisson")]
        for kind in kinds[-1:]:
            traffic = about["traffic"][kind]
            scale = traffic["figures"][OURS]["p50_latency"]
            for name, runs in traffic["runs"].items():
                latencies = sorted(second / scale for run in runs for second in run["latencies"])
                shares = [(i + 1) / len(latencies) for i in range(len(latencies))]
                right.step(latencies, shares, where="post", label=name)
            right.set(title=f"{model}: {traffic['about']}", xscale="log", ylabel="share of requests")
            right.set_xlabel("latency over continuous' median")
            right.legend(fontsize="small")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return [path]

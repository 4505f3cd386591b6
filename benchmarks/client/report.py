"""The figures of the client as tables and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency import merged

MB = 1e6


def latency(encoded: Sequence[bytes]) -> dict[str, float]:
    """Return the summary of all runs together, in seconds; nothing of nothing."""
    return merged(encoded).summary() if encoded else {}


def tables(figures: Mapping[str, Any]) -> list[str]:
    """Return Markdown."""
    lines = []
    for window, ways in figures["exchange"].items():
        lines += [
            f"## {window} on the way",
            "",
            "| | requests/s | over bare | CPU µs a request | over bare | p50 ms | p99 ms |",
        ]
        lines += ["|---|---|---|---|---|---|---|"]
        for way, figure in ways.items():
            marks = [
                f"{figure['latency'][mark] * 1e3:.2f}" if figure["latency"] else "" for mark in ("p50", "p99")
            ]
            lines.append(
                f"| {way} | {figure['rate']:.0f} | {figure['rate_ratio']:.2f} | {figure['cpu'] * 1e6:.0f} |"
                f" {figure['cpu_ratio']:.2f} | {' | '.join(marks)} |"
            )
        lines.append("")
    count = next(iter(figures["map"].values()))["requests"]
    lines += [
        f"## `map` of {count}, 256 on the way",
        "",
        "| | µs a request | CPU µs | USS at the start, MB | most | growth of the last four fifths |",
    ]
    lines += ["|---|---|---|---|---|---|"]
    for way, figure in figures["map"].items():
        lines.append(
            f"| {way} | {figure['seconds_each'] * 1e6:.0f} | {figure['cpu_each'] * 1e6:.0f} |"
            f" {figure['start'] / MB:.1f} | {figure['peak'] / MB:.1f} | {figure['growth'] / MB:+.2f} |"
        )
    processes = next(iter(figures["processes"].values()))["processes"]
    lines += ["", f"## {processes} processes at once, each with one request on its way", ""]
    lines += [
        "| | requests/s | answered | least of a process | most | least over most | p50 ms | p99 ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way, figure in figures["processes"].items():
        marks = [f"{figure['latency'][mark] * 1e3:.1f}" for mark in ("p50", "p99")]
        lines.append(
            f"| {way} | {figure['rate']:.0f} | {figure['requests']} | {figure['least']} | {figure['most']} |"
            f" {figure['least'] / max(1, figure['most']):.2f} | {' | '.join(marks)} |"
        )
    return [*lines, "", "![CPU and memory](client.png)"]


def plot(figures: Mapping[str, Any], path: Path) -> None:
    """Draw CPU a request, and memory over a `map`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(figures["exchange"])
    for at, (window, ways) in enumerate(figures["exchange"].items()):
        heights = [own["cpu_ratio"] for own in ways.values()]
        left.bar(
            [number + at * width for number in range(len(ways))], heights, width, label=f"{window} on the way"
        )
        left.set_xticks([number + 0.4 - width / 2 for number in range(len(ways))], list(ways))
    left.set(title="CPU a request over a bare socket's")
    left.legend(fontsize="small")
    for way, own in figures["map"].items():
        right.plot([answered for answered, _ in own["memory"]], [uss / MB for _, uss in own["memory"]], label=way)
    right.set(title="map: memory of the process", xlabel="requests answered", ylabel="USS, MB", ylim=(0, None))
    right.legend(fontsize="small")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)

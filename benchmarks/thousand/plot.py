"""Draws the day."""

from pathlib import Path

from benchmarks.thousand.run import Found

_BIN = 900.0
"""Seconds."""


def draw(found: Found, path: Path) -> None:
    """Write a PNG: what GPUs did, what waited, and how long requests took, over the hours."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return  # it is an extra of its own
    figure = Figure(figsize=(10, 6), layout="constrained")
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    hours = [at / 3600 for at, *_ in found.samples]
    top.plot(hours, [workers for *_, workers in found.samples], label="registered workers", color="0.6")
    top.plot(hours, [busy for _, busy, _, _ in found.samples], label="GPUs at work")
    top.set_ylim(bottom=0)
    top.legend(loc="lower right")
    middle.fill_between(hours, [waiting for _, _, waiting, _ in found.samples], step="mid")
    middle.set_ylabel("requests that wait\nat the broker")
    bins: dict[int, list[float]] = {}
    for each in found.by_client.values():
        for asked, latency in each:
            bins.setdefault(int(asked // _BIN), []).append(latency / 60)
    times = sorted(bins)
    at = [(time + 0.5) * _BIN / 3600 for time in times]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        bottom.plot(at, [sorted(bins[t])[int(share * (len(bins[t]) - 1))] for t in times], label=name)
    bottom.set(ylabel="latency, minutes", xlabel="hour of the day", ylim=(0, None))
    bottom.legend(loc="upper left")
    figure.savefig(path, dpi=110)

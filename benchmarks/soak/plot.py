"""The picture of a soak: memory, descriptors and threads of every process over its time."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.soak.samples import Sample
from benchmarks.soak.verdict import MB

QUANTITIES = (("USS, MB", "uss", MB), ("descriptors", "fds", 1.0), ("threads", "threads", 1.0))


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Draw one column for each role and one row for each quantity; each life is a line of its own."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.lines import Line2D

    by_role: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_role[sample.role].append(sample)
    rows, columns = len(QUANTITIES), max(1, len(by_role))
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(3.1 * columns, 2.2 * rows), squeeze=False, sharex=True, layout="constrained"
    )
    for column, (role, members) in enumerate(by_role.items()):
        names = {name: f"C{number}" for number, name in enumerate(sorted({sample.name for sample in members}))}
        for row, (title, quantity, unit) in enumerate(QUANTITIES):
            _draw(axes[row][column], members, names, quantity, unit)
            if column == 0:
                axes[row][column].set_ylabel(title)
        axes[0][column].set_title(role)
        if len(names) <= 4:
            axes[0][column].legend(
                [Line2D([], [], color=colour) for colour in names.values()], names, fontsize="x-small"
            )
        axes[-1][column].set_xlabel("minutes")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _draw(axis: Any, members: Sequence[Sample], names: dict[str, str], quantity: str, unit: float) -> None:
    ordered = sorted(members, key=lambda sample: (sample.name, sample.number, sample.seconds))
    for (name, _), group in groupby(ordered, key=lambda sample: (sample.name, sample.number)):
        life = list(group)
        heights = [getattr(sample, quantity) / unit for sample in life]
        axis.plot([sample.seconds / 60 for sample in life], heights, color=names[name], linewidth=0.9)
    # From nothing upwards, lest noise look like growth.
    axis.set_ylim(0, 1.15 * max(1.0, axis.get_ylim()[1]))
    axis.grid(alpha=0.3)

"""Is it flat? One line for each life of a process, and the rule."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from scipy.stats import theilslopes

from benchmarks.soak.samples import Sample

MB = 1e6
WARM_UP_SHARE = 0.25
"""Of a life; what comes before is start-up: caches fill, pools get their threads, allocators their arenas."""
WARM_UP_LEAST = 60.0
JUDGED_LEAST = 1200.0
"""Seconds after the warm-up from which on a life is judged: by its first ten minutes a worker grew by 6 MB an hour
that by the whole hour grew by 0.6."""
SLOPE_SHARE = 0.03
SLOPE_MB = 2.0
MORE_FDS = 2
MORE_THREADS = 1

RULE = (
    f"Of each life the first quarter (at least {WARM_UP_LEAST:.0f} s) is warm-up; what has {JUDGED_LEAST / 60:.0f}"
    " minutes or more after it is judged. Memory (USS) is flat if its Theil–Sen slope, the median of the slopes"
    f" between all pairs of samples, is at most {SLOPE_MB:.0f} MB or {SLOPE_SHARE:.0%} of its median an hour,"
    f" whichever is more; descriptors and threads are flat if the median of the last fifth is at most {MORE_FDS}"
    f" and {MORE_THREADS} more than that of the first."
)


@dataclass(frozen=True, slots=True)
class Line:
    """One life; memory in MB, `slope` and its 95 % bounds in MB an hour."""

    name: str
    role: str
    number: int
    minutes: float
    rss: float
    uss: float
    slope: float
    low: float
    high: float
    fds: tuple[float, float]
    """At the beginning and at the end, after the warm-up."""
    threads: tuple[float, float]
    cores: float
    """CPU seconds a second."""
    judged: bool

    @property
    def growing(self) -> list[str]:
        """What of it is not flat."""
        found = {
            "memory": self.slope > max(SLOPE_MB, SLOPE_SHARE * self.uss),
            "descriptors": self.fds[1] - self.fds[0] > MORE_FDS,
            "threads": self.threads[1] - self.threads[0] > MORE_THREADS,
        }
        return [what for what, grows in found.items() if grows and self.judged]

    @property
    def verdict(self) -> str:
        """In a word or two."""
        if not self.judged:
            return "too short"
        return f"grows: {', '.join(self.growing)}" if self.growing else "flat"


def lines(samples: Iterable[Sample]) -> list[Line]:
    """Return a line for each life that has samples enough for a slope."""
    ordered = sorted(samples, key=lambda sample: (sample.role, sample.name, sample.number, sample.seconds))
    lives = groupby(ordered, key=lambda sample: (sample.role, sample.name, sample.number))
    found = [_line(list(life)) for _, life in lives]
    return [line for line in found if line is not None]


def _line(life: Sequence[Sample]) -> Line | None:
    begun, ended = life[0].seconds, life[-1].seconds
    warm = begun + max(WARM_UP_LEAST, WARM_UP_SHARE * (ended - begun))
    judged = ended - warm >= JUDGED_LEAST
    late = [sample for sample in life if sample.seconds >= warm] if judged else list(life[len(life) // 4 :])
    if len(late) < 3:
        return None
    hours, memory = [sample.seconds / 3600 for sample in late], [sample.uss / MB for sample in late]
    slope, _, low, high = theilslopes(memory, hours)
    return Line(
        name=late[0].name,
        role=late[0].role,
        number=late[0].number,
        minutes=(ended - begun) / 60,
        rss=statistics.median(sample.rss / MB for sample in late),
        uss=statistics.median(memory),
        slope=float(slope),
        low=float(low),
        high=float(high),
        fds=_ends([sample.fds for sample in late]),
        threads=_ends([sample.threads for sample in late]),
        cores=(life[-1].cpu - life[0].cpu) / max(ended - begun, 1e-9),
        judged=judged,
    )


def _ends(values: Sequence[int]) -> tuple[float, float]:
    fifth = max(1, len(values) // 5)
    return statistics.median(values[:fifth]), statistics.median(values[-fifth:])


def table(found: Sequence[Line]) -> list[str]:
    """Return Markdown: each judged life, then by role those that were too short."""
    rows = [
        "| process | life | minutes | RSS MB | USS MB | MB an hour (95 %) | descriptors | threads | cores | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for line in found:
        if line.judged:
            bounds = f"{line.slope:+.2f} ({line.low:+.2f} … {line.high:+.2f})"
            fds, threads = (f"{first:g} → {last:g}" for first, last in (line.fds, line.threads))
            rows.append(
                f"| {line.name} | {line.number} | {line.minutes:.0f} | {line.rss:.1f} | {line.uss:.1f} |"
                f" {bounds} | {fds} | {threads} | {line.cores:.3f} | {line.verdict} |"
            )
    rows += [
        "",
        "| role | lives too short to judge | minutes, median | USS MB, median | USS MB, most |",
        "|---|---|---|---|---|",
    ]
    short = sorted((line for line in found if not line.judged), key=lambda line: line.role)
    for role, group in groupby(short, key=lambda line: line.role):
        members = list(group)
        memory = [line.uss for line in members]
        minutes = statistics.median(line.minutes for line in members)
        rows.append(
            f"| {role} | {len(members)} | {minutes:.1f} | {statistics.median(memory):.1f} | {max(memory):.1f} |"
        )
    return rows

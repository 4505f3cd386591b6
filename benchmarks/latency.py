"""Latencies under open-loop load: kept in an HdrHistogram, counted from when a request should have gone out.

A loop that waits for an answer before it sends the next request sends less while the other side is slow, and so
never sees what users would have (coordinated omission). Here send times are fixed beforehand, and a request that
goes out late, because the loop or the machine was held up, has waited all the while.
"""

import math
import random
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Generic, Self, TypeVar

from hdrh.histogram import HdrHistogram

LOWEST_SECONDS = 1e-6
HIGHEST_SECONDS = 3600.0
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)

Key = TypeVar("Key", bound=Hashable)


class Latencies:
    """Durations of 1 µs to an hour, in seconds, to three digits; memory does not grow with their number."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, round(HIGHEST_SECONDS / LOWEST_SECONDS), DIGITS)

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def record(self, seconds: float) -> None:
        """Count one; shorter and longer ones count as the shortest and the longest that there are."""
        value = round(min(max(seconds, LOWEST_SECONDS), HIGHEST_SECONDS) / LOWEST_SECONDS)
        self._histogram.record_value(value)

    def percentile(self, share: float) -> float:
        """Return the seconds that `share` percent do not exceed; NaN of nothing."""
        if not len(self):
            return math.nan
        return float(self._histogram.get_value_at_percentile(share)) * LOWEST_SECONDS

    def mean(self) -> float:
        """Return the mean in seconds; NaN of nothing."""
        return float(self._histogram.get_mean_value()) * LOWEST_SECONDS if len(self) else math.nan

    def summary(self) -> dict[str, float]:
        """Return `count`, and in seconds `mean`, `p50`, `p90`, `p99`, `p99.9` and `max`."""
        names = {100.0: "max"}
        marks = {names.get(share, f"p{share:g}"): self.percentile(share) for share in PERCENTILES}
        return {"count": float(len(self)), "mean": self.mean(), **marks}

    def tail(self, nines: int = 4) -> list[tuple[float, float]]:
        """Return (percent, seconds) from the median to so many nines, for a plot of the tail."""
        shares = [100 * (1 - 10 ** -(step / 8)) for step in range(3, 8 * nines + 1)]
        return [(share, self.percentile(share)) for share in shares]

    def encode(self) -> bytes:
        """Return it compressed, in HdrHistogram's own format, for another process or a file."""
        return bytes(self._histogram.encode())

    def add(self, encoded: bytes) -> Self:
        """Add what `encode` gave in another process."""
        self._histogram.decode_and_add(encoded)
        return self


def evenly(rate: float, count: int) -> list[float]:
    """Return `count` intended times in seconds from the start, `rate` a second."""
    return [number / rate for number in range(count)]


def poisson(rate: float, count: int, seed: int = 0) -> list[float]:
    """Return `count` intended times of a Poisson process of `rate` a second, in seconds from the start."""
    source, at, times = random.Random(seed), 0.0, []
    for _ in range(count):
        at += source.expovariate(rate)
        times.append(at)
    return times


class Recorder(Generic[Key]):
    """Knows when each request should have gone out, and counts its latency from then."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.latencies = Latencies()
        self.late = Latencies()
        """How long after their intended times requests went out; if long, the load generator was the limit."""
        self._clock = clock
        self._intended: dict[Key, float] = {}

    def sent(self, key: Key, intended: float) -> None:
        """Note a request that goes out now and should have at `intended`, a time of the clock."""
        self._intended[key] = intended
        self.late.record(self._clock() - intended)

    def answered(self, key: Key) -> float:
        """Count its latency and return it in seconds. Raises `KeyError` for one not sent, or answered before."""
        seconds = self._clock() - self._intended.pop(key)
        self.latencies.record(seconds)
        return seconds

    @property
    def unanswered(self) -> int:
        """How many are on their way."""
        return len(self._intended)


def open_loop(
    times: Sequence[float],
    send: Callable[[int, float], object],
    wait: Callable[[float], object],
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Call `send(number, intended)` at each of the times (seconds from now, ascending), answers or not.

    Until the next one is due it calls `wait(seconds)`, which takes answers for at most so long and is called once
    between sends even when late. `intended` is a time of the clock, for `Recorder.sent`.
    """
    begun = clock()
    for number, at in enumerate(times):
        intended = begun + at
        wait(max(0.0, intended - clock()))
        while (left := intended - clock()) > 0:
            wait(left)
        send(number, intended)


def merged(encoded: Iterable[bytes]) -> Latencies:
    """Return one of all that other processes encoded."""
    total = Latencies()
    for each in encoded:
        total.add(each)
    return total


def table(named: Iterable[tuple[str, Latencies]], unit: float = 1e-3, name: str = "ms") -> Iterator[str]:
    """Yield the lines of a Markdown table of latencies."""
    yield f"| {name} | count | mean | p50 | p90 | p99 | p99.9 | max |"
    yield "|---|---|---|---|---|---|---|---|"
    for title, latencies in named:
        summary = latencies.summary()
        count = int(summary.pop("count"))
        yield f"| {title} | {count} | " + " | ".join(f"{value / unit:.3g}" for value in summary.values()) + " |"

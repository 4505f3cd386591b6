"""Rows of a forward: the most that fit into memory, and the number that is fastest. Both are measured at work."""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from cachetools import LRUCache

MAX_KEYS = 1024
"""Maximum number of remembered shapes; the least recently used are forgotten."""
FIRST_TRY = 2
"""Choices until the largest size is tried again after a smaller one was found best."""


@dataclass(slots=True)
class _Limit:
    rows: int
    retry_after: int
    successes: int = 0
    fitted: int = 0


class MemoryLimits:
    """The most rows that fit into memory, by shape.

    After `retry_after` forwards at its limit, a shape tries a quarter more. If that fails, its interval
    doubles, up to `max_retry_after`.
    """

    def __init__(self, *, retry_after: int = 200, max_retry_after: int = 20_000) -> None:
        self._retry_after = retry_after
        self._max_retry_after = max_retry_after
        self._limits: LRUCache[Hashable, _Limit] = LRUCache(MAX_KEYS)

    def allowed(self, key: Hashable) -> int | None:
        """Return the maximum number of rows in one forward; None while no limit is known."""
        limit = self._limits.get(key)
        return None if limit is None else limit.rows

    def too_many(self, key: Hashable, rows: int) -> None:
        """Record that `rows` rows did not fit: halve the limit, but not below a number that is known to fit."""
        limit = self._limits.get(key)
        if limit is None:
            limit = self._limits[key] = _Limit(rows, self._retry_after)
        else:
            limit.retry_after = min(limit.retry_after * 2, self._max_retry_after)
        if limit.fitted >= rows:  # these rows fitted before, and no longer do
            limit.fitted = 0
        limit.rows = max(rows // 2, limit.fitted, 1)
        limit.successes = 0

    def fitted(self, key: Hashable, rows: int) -> None:
        """Record that a forward of `rows` rows succeeded."""
        limit = self._limits.get(key)
        if limit is None or rows < limit.rows:
            return
        limit.fitted = limit.rows
        limit.successes += 1
        if limit.successes >= limit.retry_after:
            limit.successes = 0
            limit.rows += max(limit.rows // 4, 1)


class SlotLimit:
    """The number of images that may run at a time: `maximum`, or fewer after one ran out of memory.

    Forwards have limits of their own (`MemoryLimits`); this one is for what a call does between its forwards.
    After `retry_after` completed images, one more is tried.
    """

    def __init__(self, maximum: int, *, retry_after: int = 64) -> None:
        self._maximum = maximum
        self._retry_after = retry_after
        self._completed = 0
        self.slots = maximum

    def too_many(self, others: int) -> None:
        """Record that an image did not fit beside `others` running images, at least one."""
        self.slots = min(self.slots, others)
        self._completed = 0

    def completed(self, images: int) -> None:
        """Record completed images."""
        self._completed += images
        if self._completed >= self._retry_after:
            self._completed = 0
            self.slots = min(self.slots + 1, self._maximum)


@dataclass(slots=True)
class _Costs:
    seconds: dict[int, deque[float]] = field(default_factory=dict)
    retry_after: int = 0
    """Choices between tries of the largest size while a smaller one is known as best; 0: none is."""
    until_try: int = 0


class RowCosts:
    """Seconds per forward by shape and rows; from these, the number of rows that is fastest.

    More rows are better as long as the measured rows per second grow by more than `gain`. A size that was never
    measured counts as better, unless a smaller size already shows that the growth has ended. To find out whether
    fewer rows are as fast, half the size is tried a few times, and half of that if it was. The largest size
    is tried again after `FIRST_TRY` choices, then at growing distances, up to `probe_every`: few or disturbed
    measurements therefore have no lasting effect. `samples`: measurements of a size before it counts; `window`:
    number of the latest measurements, whose median counts.
    """

    def __init__(self, *, gain: float = 0.02, samples: int = 3, window: int = 9, probe_every: int = 64) -> None:
        self._gain = gain
        self._samples = samples
        self._window = window
        self._probe_every = probe_every
        self._costs: LRUCache[Hashable, _Costs] = LRUCache(MAX_KEYS)

    def observe(self, key: Hashable, rows: int, seconds: float) -> None:
        """Record that a forward of `rows` rows took `seconds`."""
        self._of(key).seconds.setdefault(rows, deque(maxlen=self._window)).append(seconds)

    def choose(self, key: Hashable, sizes: Sequence[int], *, gain: float | None = None) -> int:
        """Return the row count for the next forward out of `sizes` (increasing, at least one).

        `gain` is the minimum gain in rows per second for more rows; below zero, the maximum loss.
        """
        if len(sizes) == 1:
            return sizes[0]
        costs = self._of(key)
        rates = self._rates(costs)
        saturation_point = self._saturation_point(rates, self._gain if gain is None else gain)
        if self._tries_largest(costs, saturation_point):
            top = sizes[-1]
        else:
            assert saturation_point is not None
            top = max((size for size in sizes if size <= saturation_point), default=sizes[0])
        if top in rates and not any(top / 4 <= size <= top / 2 for size in rates):
            return max((size for size in sizes if size <= top / 2), default=top)
        return top

    def _tries_largest(self, costs: _Costs, saturation_point: int | None) -> bool:
        if saturation_point is None:
            costs.retry_after = 0
            return True
        if costs.retry_after == 0:  # the smaller size was found best just now
            costs.retry_after = costs.until_try = min(FIRST_TRY, self._probe_every)
        costs.until_try -= 1
        if costs.until_try > 0:
            return False
        costs.retry_after = costs.until_try = min(costs.retry_after * 2, self._probe_every)
        return True

    def saturation_point(self, key: Hashable) -> int | None:
        """Return the rows above which no measured size is faster; None if no larger one was measured."""
        costs = self._costs.get(key)
        return None if costs is None else self._saturation_point(self._rates(costs), self._gain)

    def _saturation_point(self, rates: Mapping[int, float], gain: float) -> int | None:
        if not rates:
            return None
        best = min(rates)
        for rows, rate in rates.items():
            if rate > rates[best] * (1 + gain):
                best = rows
        return None if best == max(rates) else best

    def _rates(self, costs: _Costs) -> dict[int, float]:
        """Return rows per second by rows (increasing) for the sizes with at least `samples` measurements."""
        return {
            rows: rows / max(median(seconds), 1e-9)
            for rows, seconds in sorted(costs.seconds.items())
            if len(seconds) >= self._samples
        }

    def _of(self, key: Hashable) -> _Costs:
        costs = self._costs.get(key)
        if costs is None:
            costs = self._costs[key] = _Costs()
        return costs

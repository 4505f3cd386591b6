"""How many rows a forward may have: what memory allows, and what pays. Both are learned from real work."""

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from cachetools import LRUCache

MAX_KEYS = 1024
"""Maximum number of remembered shapes; the least recently used are forgotten."""
FIRST_TRY = 2
"""Choices after which a fresh verdict about rows is doubted for the first time."""


@dataclass(slots=True)
class _Cap:
    rows: int
    patience: int
    successes: int = 0
    fitted: int = 0


class MemoryCaps:
    """The most rows that fit, by shape. A cap lasts, and is tried again after `patience` forwards at the cap.

    A trial adds a quarter; when it fails, the patience for the next one doubles, up to `max_patience`.
    """

    def __init__(self, *, patience: int = 200, max_patience: int = 20_000) -> None:
        self._patience = patience
        self._max_patience = max_patience
        self._caps: LRUCache[Hashable, _Cap] = LRUCache(MAX_KEYS)

    def allowed(self, key: Hashable) -> int | None:
        """Return the most rows that may go into one forward; None while no limit is known."""
        cap = self._caps.get(key)
        return None if cap is None else cap.rows

    def too_many(self, key: Hashable, rows: int) -> None:
        """Note that `rows` rows did not fit: from now on at most half, or what is known to fit if that is more."""
        cap = self._caps.get(key)
        if cap is None:
            cap = self._caps[key] = _Cap(rows, self._patience)
        else:
            cap.patience = min(cap.patience * 2, self._max_patience)
        if cap.fitted >= rows:  # what fitted once does no longer
            cap.fitted = 0
        cap.rows = max(rows // 2, cap.fitted, 1)
        cap.successes = 0

    def fitted(self, key: Hashable, rows: int) -> None:
        """Note that a forward of `rows` rows went well."""
        cap = self._caps.get(key)
        if cap is None or rows < cap.rows:
            return
        cap.fitted = cap.rows
        cap.successes += 1
        if cap.successes >= cap.patience:
            cap.successes = 0
            cap.rows += max(cap.rows // 4, 1)


@dataclass(slots=True)
class _Costs:
    seconds: dict[int, deque[float]] = field(default_factory=dict)
    patience: int = 0
    """Choices from one try of the largest size to the next while a smaller one is thought best; 0: none is."""
    until_try: int = 0


class RowCosts:
    """Seconds a forward by shape and rows; from them, how many rows pay.

    More rows pay as long as the measured rows a second grow by more than `gain`. Sizes that were never measured
    are given the benefit of the doubt, unless a smaller one already shows that the growth has ended. To see
    whether less would do as well, half the size is tried a few times once, and half of that if it did. A verdict
    can change: the largest size is taken anyway after `FIRST_TRY` choices, then at growing distances, up to
    `probe_every`; so one that rests on few measurements, and those disturbed, does not last.
    """

    def __init__(self, *, gain: float = 0.02, samples: int = 3, window: int = 9, probe_every: int = 64) -> None:
        self._gain = gain
        self._samples = samples
        self._window = window
        self._probe_every = probe_every
        self._costs: LRUCache[Hashable, _Costs] = LRUCache(MAX_KEYS)

    def observe(self, key: Hashable, rows: int, seconds: float) -> None:
        """Note that a forward of `rows` rows took `seconds`."""
        self._of(key).seconds.setdefault(rows, deque(maxlen=self._window)).append(seconds)

    def estimate(self, key: Hashable, rows: int) -> float | None:
        """Return the seconds that a forward of `rows` rows took, by the median; None if there was none."""
        costs = self._costs.get(key)
        measured = None if costs is None else costs.seconds.get(rows)
        return median(measured) if measured else None

    def choose(self, key: Hashable, sizes: Sequence[int], *, gain: float | None = None) -> int:
        """Return which of these row counts (growing, at least one) the next forward should have.

        `gain` is what more rows must bring; below zero: what they may cost.
        """
        if len(sizes) == 1:
            return sizes[0]
        costs = self._of(key)
        rates = self._rates(costs)
        knee = self._knee(rates, self._gain if gain is None else gain)
        if self._tries_largest(costs, knee):
            top = sizes[-1]
        else:
            assert knee is not None
            top = max((size for size in sizes if size <= knee), default=sizes[0])
        if top in rates and not any(top / 4 <= size <= top / 2 for size in rates):
            return max((size for size in sizes if size <= top / 2), default=top)
        return top

    def _tries_largest(self, costs: _Costs, knee: int | None) -> bool:
        if knee is None:
            costs.patience = 0
            return True
        if costs.patience == 0:  # a fresh verdict
            costs.patience = costs.until_try = min(FIRST_TRY, self._probe_every)
        costs.until_try -= 1
        if costs.until_try > 0:
            return False
        costs.patience = costs.until_try = min(costs.patience * 2, self._probe_every)
        return True

    def knee(self, key: Hashable) -> int | None:
        """Return the rows beyond which no measured size pays; None if no larger one was measured."""
        costs = self._costs.get(key)
        return None if costs is None else self._knee(self._rates(costs), self._gain)

    def _knee(self, rates: Mapping[int, float], gain: float) -> int | None:
        if not rates:
            return None
        best = min(rates)
        for rows, rate in rates.items():
            if rate > rates[best] * (1 + gain):
                best = rows
        return None if best == max(rates) else best

    def _rates(self, costs: _Costs) -> dict[int, float]:
        """Return rows a second by rows, growing, for the sizes that were measured often enough."""
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

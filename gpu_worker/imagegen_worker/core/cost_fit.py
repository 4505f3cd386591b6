"""Fitting of costs to measured seconds, with bounded memory and time."""

from collections import deque
from collections.abc import Sequence
from itertools import combinations
from statistics import median

FORGETTING = 0.97
"""Weight of a measurement relative to the next one: about the last 30 determine the coefficients."""
DRIFT_SMOOTHING = 0.15
"""Weight of the newest measurement in the device's present speed, relative to the coefficients."""
OUTLIER_FACTOR = 4.0
"""Factor from which a measurement that no coefficients reconcile with the last one counts as an outlier."""
OUTLIERS_IN_A_ROW = 3
"""Consecutive outliers from which the earlier measurements are discarded: the first ones were the outliers."""
FORWARD_SHARES = (0.5, 0.5)
"""Fixed part of a forward, and part per image and megapixel, as long as all forwards had the same size."""
_PRIOR_WEIGHT = 1e-4
"""Weight of the earlier coefficients relative to all measurements; it decides where these determine none."""
_MIN_SHARE = 1e-3

_Vector = list[float]


class CostFit:
    """Non-negative coefficients of a sum that predicts seconds from features.

    Least squares of the relative errors, with exponential forgetting. A device that becomes slower or faster is
    followed within about 20 measurements. `shares`: what part of the seconds each feature contributes as long as
    measurements do not tell, for example because all of them had the same features. Each `observe` is O(2^n) for n
    features, whatever the number of measurements.
    """

    def __init__(self, shares: Sequence[float]) -> None:
        self._shares = list(shares)
        self.count = 0
        """Number of measurements."""
        self._outliers: list[tuple[Sequence[float], float]] = []
        self._forget()

    def _forget(self) -> None:
        n = len(self._shares)
        self._products = [[0.0] * n for _ in range(n)]
        self._means = [0.0] * n
        self._weight = 0.0
        self._speed = 1.0
        self._solution: _Vector | None = None
        self._last: tuple[Sequence[float], float] | None = None

    def coefficients(self) -> tuple[float, ...] | None:
        """Return the coefficients at the device's present speed; None before the first measurement."""
        return None if self._solution is None else tuple(self._speed * each for each in self._solution)

    def observe(self, features: Sequence[float], seconds: float) -> None:
        """Add a measurement. Seconds of zero and features that are all zero are ignored."""
        if seconds <= 0 or not any(features):
            return
        self.count += 1
        accepted = [(features, seconds)]
        if self._is_outlier(features, seconds):
            self._outliers += accepted
            if len(self._outliers) < OUTLIERS_IN_A_ROW:
                return
            accepted = self._outliers
            self._forget()
        self._outliers = []
        for each in accepted:
            self._accept(*each)

    def _is_outlier(self, features: Sequence[float], seconds: float) -> bool:
        """Return whether no coefficients explain both this measurement and the last one that was accepted."""
        if self._last is None:
            return False
        ratios = [now / before for now, before in zip(features, self._last[0], strict=True) if before]
        if len(ratios) < len([each for each in features if each]):
            return False  # it has a feature that the last one had not
        ratio = seconds / self._last[1]
        return not min(ratios) / OUTLIER_FACTOR <= ratio <= max(ratios) * OUTLIER_FACTOR

    def _accept(self, features: Sequence[float], seconds: float) -> None:
        if (predicted := _dot(self._solution or [], features)) > 0:
            ratio = seconds / (predicted * self._speed)
            self._speed *= ratio**DRIFT_SMOOTHING
        self._last = (features, seconds)
        relative = [each / seconds for each in features]
        for row, left in zip(self._products, relative, strict=True):
            row[:] = [FORGETTING * old + left * right for old, right in zip(row, relative, strict=True)]
        self._means = [FORGETTING * old + new for old, new in zip(self._means, relative, strict=True)]
        self._weight = FORGETTING * self._weight + 1.0
        first = self._solution is None
        self._solution = self._solve()
        if first:
            self._speed = 1.0

    def _solve(self) -> _Vector:
        """Return the non-negative coefficients with the smallest error, near the earlier ones if undetermined."""
        units = self._prior()
        used = [index for index, unit in enumerate(units) if unit > 0]
        # In units of the prior: its coefficients are 1, and all sums have a similar size.
        n = len(used)
        scaled = [[self._products[i][j] * units[i] * units[j] for j in used] for i in used]
        right = [self._means[i] * units[i] for i in used]
        weight = _PRIOR_WEIGHT * self._weight
        for at in range(n):
            scaled[at][at] += weight
            right[at] += weight
        found = [0.0] * len(units)
        for index, value in zip(used, _non_negative(scaled, right), strict=True):
            found[index] = value * units[index]
        return found

    def _prior(self) -> _Vector:
        """Return the earlier coefficients, or at first the shares, scaled so that their error is smallest."""
        means = [each / self._weight for each in self._means]
        if self._solution is None:
            parts = self._shares
        else:
            parts = [value * mean for value, mean in zip(self._solution, means, strict=True)]
        least = _MIN_SHARE * sum(parts)
        units = [max(part, least) / mean if mean else 0.0 for part, mean in zip(parts, means, strict=True)]
        square = sum(unit * _dot(row, units) for unit, row in zip(units, self._products, strict=True))
        scale = _dot(self._means, units) / square
        return [scale * unit for unit in units]


class RecentMedian:
    """The median of the last measurements; single outliers do not change it."""

    def __init__(self, window: int = 9) -> None:
        self._values: deque[float] = deque(maxlen=window)

    def observe(self, value: float) -> None:
        """Add a measurement."""
        self._values.append(value)

    def value(self, default: float) -> float:
        """Return the median, or `default` before the first measurement."""
        return median(self._values) if self._values else default


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(each * other for each, other in zip(left, right, strict=False))


def _non_negative(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> _Vector:
    """Return the non-negative minimum of `x·Mx/2 - x·right` for a positive definite matrix M of a few rows."""
    n = len(right)
    best, best_value = [0.0] * n, 0.0
    for size in range(n, 0, -1):
        for chosen in combinations(range(n), size):
            part = _gauss([[matrix[i][j] for j in chosen] for i in chosen], [right[i] for i in chosen])
            # At the minimum over these coordinates, the value is half of -x·right.
            value = -_dot(part, [right[i] for i in chosen]) / 2
            if min(part) >= 0 and value < best_value:
                best, best_value = [0.0] * n, value
                for index, each in zip(chosen, part, strict=True):
                    best[index] = each
        if size == n and any(best):
            break  # the unconstrained minimum
    return best


def _gauss(matrix: list[_Vector], right: _Vector) -> _Vector:
    """Return the solution of a positive definite system of linear equations. O(n^3)."""
    n = len(right)
    for column in range(n):
        for row in range(column + 1, n):
            factor = matrix[row][column] / matrix[column][column]
            matrix[row] = [each - factor * above for each, above in zip(matrix[row], matrix[column], strict=True)]
            right[row] -= factor * right[column]
    found = [0.0] * n
    for row in range(n - 1, -1, -1):
        known = _dot(matrix[row][row + 1 :], found[row + 1 :])
        found[row] = (right[row] - known) / matrix[row][row]
    return found

"""Range queries to a Prometheus, with Grafana's variables substituted."""

import json
import math
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tools.dashboard.panels import RATE


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel: Unix times and values; NaN for a missing value."""

    labels: Mapping[str, str]
    times: list[float]
    values: list[float]

    @property
    def has_data(self) -> bool:
        """Whether it has a finite value."""
        return any(math.isfinite(value) for value in self.values)


class Prometheus:
    """A Prometheus server. `window` is the value of Grafana's `$__rate_interval`."""

    def __init__(self, url: str, window: str = "1m") -> None:
        self._url = url.rstrip("/")
        self._window = window

    def substitute(self, expr: str, worker: str | None) -> str:
        """Return an expression with Grafana's variables substituted. `worker`: None for all workers."""
        return expr.replace(RATE, self._window).replace("$worker", worker or ".+")

    def range(self, expr: str, start: float, end: float, step: float, worker: str | None = None) -> list[Series]:
        """Return the series between two Unix times. Raises `urllib.error.HTTPError` for invalid PromQL."""
        query = {"query": self.substitute(expr, worker), "start": start, "end": end, "step": step}
        result = self._get("query_range", query)["result"]
        return [
            Series(
                one["metric"],
                [float(time) for time, _ in one["values"]],
                [float(value) for _, value in one["values"]],
            )
            for one in result
        ]

    def label_values(self, metric: str, label: str) -> list[str]:
        """Return the values of a label of a metric."""
        values: list[str] = self._get(f"label/{label}/values", {"match[]": metric})
        return values

    def _get(self, path: str, query: Mapping[str, Any]) -> Any:
        with urllib.request.urlopen(
            f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=30
        ) as answer:
            return json.load(answer)["data"]

"""Prometheus metrics of the broker: a view of one snapshot, made when it is scraped."""

from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from imagegen_broker.core.counters import BUCKETS, Histogram
from imagegen_broker.server import Snapshot

_PREFIX = "imagegen_broker_"


class BrokerCollector(Collector):
    """The metrics of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        stats = self._snapshot.statistics
        totals = stats["totals"]
        workers = stats["per_gpu_stats"]
        yield _gauge("build_info", "Always 1; the version is a label.", {version("imagegen-fleet"): 1}, "version")
        yield _gauge("pending_requests", "Requests held, by state.", stats["requests"], "state")
        yield _gauge("held_bytes", "Bytes of the requests held.", stats["held_bytes"])
        yield _gauge("clients", "Clients that are alive.", stats["clients"])
        states = Counter(worker["state"] for worker in workers)
        states.update(ready=0, draining=0, unreachable=0, stuck=0)
        yield _gauge("workers", "Registered workers, by state.", states, "state")
        yield _counter("accepted_requests", "Requests taken in.", totals["accepted"])
        yield _counter("rejected_requests", "Requests refused at the door.", totals["rejected"], "reason")
        yield _counter("answers", "Terminal answers, by outcome.", totals["answered"], "outcome")
        yield _counter("acknowledgements", "Answers that clients have acknowledged.", totals["acknowledged"])
        yield _counter("abandoned_requests", "Given up: the client left or died.", totals["abandoned"])
        dispatches = {stats["strategy"]: totals["dispatched"]}
        yield _counter("dispatches", "Requests given to workers.", dispatches, "strategy")
        yield _counter("attached_requests", "Found at a worker that had them already.", totals["attached"])
        yield _counter("requeues", "Went back to the queue.", totals["requeued"], "reason")
        yield _counter("resent_answers", "Answers sent, or asked for, again.", totals["resent"])
        yield _counter("workers_lost", "Workers that fell silent.", totals["workers_lost"])
        yield _counter("workers_stuck", "Workers whose device hung.", totals["workers_stuck"])
        yield _counter("clients_lost", "Clients that fell silent.", totals["clients_lost"])
        yield _counter("malformed_messages", "Messages that did not decode.", totals["malformed"])
        yield _counter("dropped_messages", "Messages that a peer did not take.", totals["dropped"])
        yield _histogram("queue_wait_seconds", "From arrival to dispatch.", self._snapshot.queue_wait)
        yield _histogram("request_duration_seconds", "From arrival to the answer.", self._snapshot.duration)
        depth = GaugeMetricFamily(
            _PREFIX + "worker_queue_depth", "Requests at a worker.", labels=["worker", "gpu"]
        )
        for worker in workers:
            depth.add_metric([worker["worker"], str(worker["gpu_id"])], worker["current_queue_depth"])
        yield depth


def _gauge(name: str, text: str, values: float | Mapping[str, float], label: str | None = None) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=[label] if label else [])
    for key, value in values.items() if isinstance(values, Mapping) else [("", values)]:
        family.add_metric([key] if label else [], value)
    return family


def _counter(name: str, text: str, values: float | Mapping[str, float], label: str | None = None) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, text, labels=[label] if label else [])
    for key, value in values.items() if isinstance(values, Mapping) else [("", values)]:
        family.add_metric([key] if label else [], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    bounds = [*(str(bound) for bound in BUCKETS), "+Inf"]
    buckets = list(zip(bounds, accumulate(histogram.counts), strict=True))
    return HistogramMetricFamily(_PREFIX + name, text, buckets=buckets, sum_value=histogram.total)

"""Prometheus metrics of the broker, computed from one snapshot per scrape."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from itertools import accumulate

from msgspec.structs import asdict
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from imagegen_broker.core.counters import BUCKETS, OTHER, OUTCOMES, Histogram
from imagegen_broker.server import Snapshot
from imagegen_common.logs import dropped_lines
from imagegen_protocol.errors import InvalidRequestError, ModelNotFoundError, OverloadedError
from imagegen_protocol.statistics import GpuStatistics, ModelStatistics, Statistics, Totals

REJECTIONS = (InvalidRequestError.code, ModelNotFoundError.code, OverloadedError.code)
REQUEUE_REASONS = (
    "worker_lost",
    "worker_left",
    "worker_reconnected",
    "worker_stuck",
    "lost",
    "returned",
    "unreachable",
    "answer_lost",
)
_STATES = ("ready", "draining", "unreachable", "stuck")
_PREFIX = "imagegen_broker_"


class BrokerCollector(Collector):
    """The metrics of one snapshot."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterable[Metric]:
        """Yield every metric."""
        stats = self._snapshot.statistics
        yield _gauge("build_info", "Always 1; the version is a label.", {version("imagegen-fleet"): 1}, "version")
        yield _gauge("uptime_seconds", "Seconds since the broker started.", stats.uptime_seconds)
        yield from self._held(stats)
        yield from self._totals(stats.totals, stats.strategy)
        yield _histogram("queue_wait_seconds", "Seconds from arrival to dispatch.", self._snapshot.queue_wait)
        yield _histogram(
            "request_duration_seconds", "Seconds from arrival to the answer.", self._snapshot.duration
        )
        yield from _models(stats.per_model_stats)
        yield from _workers(stats.per_gpu_stats)

    def _held(self, stats: Statistics) -> Iterable[Metric]:
        held = [count for count in self._snapshot.held_by_client if count]
        yield _gauge("pending_requests", "Requests held, by state.", asdict(stats.requests), "state")
        yield _gauge("held_bytes", "Size of all requests held.", stats.held_bytes)
        yield _gauge("max_requests", "Maximum number of requests held; more are rejected.", stats.limits.requests)
        yield _gauge("max_held_bytes", "Maximum size of all requests held.", stats.limits.bytes)
        yield _gauge(
            "transfer_bytes", "Bytes of images that peers requested or did not confirm.", stats.transfer_bytes
        )
        yield _gauge("clients", "Connected clients.", stats.clients)
        yield _gauge(
            "held_clients",
            "Clients that must acknowledge before more of their requests are dispatched.",
            stats.held_clients,
        )
        yield _gauge("busy_clients", "Clients with requests at this broker.", len(held))
        yield _gauge(
            "largest_client_requests", "Requests of the client with the most requests.", max(held, default=0)
        )
        yield _gauge(
            "client_inequality_ratio",
            "Gini coefficient of the requests per busy client: 0 if equal, near 1 if one client has nearly all.",
            gini(held),
        )

    def _totals(self, totals: Totals, strategy: str) -> Iterable[Metric]:
        yield _counter("accepted_requests", "Accepted requests.", totals.accepted)
        rejected = _known(totals.rejected, REJECTIONS)
        yield _counter("rejected_requests", "Rejected requests, by reason.", rejected, "reason")
        answers = _known(totals.answered, OUTCOMES)
        yield _counter("answers", "Terminal answers, by outcome.", answers, "outcome")
        yield _counter("acknowledgements", "Answers acknowledged by clients.", totals.acknowledged)
        yield _counter(
            "abandoned_requests", "Requests dropped because their client left or died.", totals.abandoned
        )
        dispatches = {strategy: totals.dispatched}
        yield _counter("dispatches", "Requests dispatched to workers.", dispatches, "strategy")
        yield _counter(
            "attached_requests", "Requests attached to a worker that already held them.", totals.attached
        )
        requeues = _known(totals.requeued, REQUEUE_REASONS)
        yield _counter("requeues", "Requests requeued, by reason.", requeues, "reason")
        yield _counter("resent_answers", "Answers sent or requested again.", totals.resent)
        yield _counter("received_bytes", "Bytes of input images received in chunks.", totals.received_bytes)
        yield _counter("relayed_bytes", "Bytes of answers relayed in chunks.", totals.relayed_bytes)
        yield _counter("workers_registered", "Registrations of workers.", totals.workers_registered)
        yield _counter("workers_lost", "Workers removed because they were silent.", totals.workers_lost)
        yield _counter("workers_stuck", "Workers whose device hung.", totals.workers_stuck)
        yield _counter("clients_lost", "Clients removed because they were silent.", totals.clients_lost)
        yield _counter("malformed_messages", "Messages that could not be decoded.", totals.malformed)
        yield _counter("dropped_messages", "Messages that could not be sent to a peer.", totals.dropped)
        yield _counter("dropped_log_lines", "Log lines that stderr did not accept in time.", dropped_lines())


def gini(counts: Sequence[int]) -> float:
    """Return the Gini coefficient of positive counts: 0 if all are equal, near 1 if one has nearly all."""
    total, n = sum(counts), len(counts)
    if not total:
        return 0.0
    return sum((2 * place - n + 1) * count for place, count in enumerate(sorted(counts))) / (n * total)


def _models(rows: Sequence[ModelStatistics]) -> Iterable[Metric]:
    def gauge(name: str, text: str, key: str) -> Metric:
        values = {row.model: getattr(row, key) for row in rows}
        return _gauge(name, text, {model: value for model, value in values.items() if value is not None}, "model")

    yield gauge("model_workers", "Workers that serve the model and accept work.", "workers")
    yield gauge("model_idle_workers", "Workers that serve the model and are idle.", "idle_workers")
    yield gauge("model_waiting_requests", "Requests for the model that wait at the broker.", "waiting")
    yield gauge("model_unfinished_requests", "Requests for the model, at the broker or at workers.", "unfinished")
    yield gauge("model_seconds_per_request", "Device seconds per request.", "seconds_per_request")
    text = "Device seconds of the unfinished requests; divided by the workers, the time until all are finished."
    yield gauge("backlog_seconds", text, "backlog_seconds")


def _workers(workers: Sequence[GpuStatistics]) -> Iterable[Metric]:
    states = Counter(worker.state for worker in workers)
    states.update(dict.fromkeys(_STATES, 0))
    yield _gauge("workers", "Registered workers, by state.", states, "state")
    for name, text, key in (
        ("worker_queue_depth", "Images of the requests at a worker.", "current_queue_depth"),
        ("worker_capacity_requests", "Images that a worker accepts at a time.", "capacity"),
        ("worker_last_heard_seconds", "Seconds since a worker's last message.", "last_heard_seconds"),
    ):
        yield _each_worker(GaugeMetricFamily(_PREFIX + name, text, labels=["worker", "gpu"]), workers, key)
    dispatches = CounterMetricFamily(
        _PREFIX + "worker_dispatches",
        "Requests dispatched to a worker since it registered.",
        labels=["worker", "gpu"],
    )
    yield _each_worker(dispatches, workers, "dispatched")


def _each_worker(
    family: GaugeMetricFamily | CounterMetricFamily, workers: Sequence[GpuStatistics], key: str
) -> Metric:
    for worker in workers:
        family.add_metric([worker.worker, str(worker.gpu_id)], getattr(worker, key))
    return family


def _known(counts: Mapping[str, int], keys: Sequence[str]) -> dict[str, int]:
    """Return the counts of all known keys, and the sum of the others under `OTHER` if there are any."""
    shown = {key: counts.get(key, 0) for key in keys}
    other = sum(count for key, count in counts.items() if key not in shown)
    return shown | {OTHER: other} if other else shown


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

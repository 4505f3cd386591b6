"""Prometheus metrics of the worker. The main thread copies the core's state; the HTTP threads read the copy."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from imagegen_protocol.costs import CostModel
from imagegen_protocol.errors import (
    RETURNED,
    DeadlineExceededError,
    GenerationFailedError,
    InvalidRequestError,
    ModelNotFoundError,
    OutOfMemoryError,
)
from imagegen_protocol.messages import WorkerStats
from imagegen_worker.config import WorkerConfig
from imagegen_worker.core.events import (
    CallDone,
    CallFailed,
    CostsMeasured,
    EngineEvent,
    Finished,
    Idle,
    ModelLoaded,
    ModelLoadFailed,
    ModelLoading,
    Started,
    Stepped,
)
from imagegen_worker.core.worker import WorkerCore
from imagegen_worker.telemetry.gpu_metrics import GpuCollector
from imagegen_worker.telemetry.http import HttpServer

SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
RATIO_BUCKETS = (0.25, 0.5, 0.7, 0.85, 0.95, 1.05, 1.15, 1.3, 1.5, 2.0, 4.0)
ROWS_BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512)
OUTCOMES = (
    "result",
    InvalidRequestError.code,
    ModelNotFoundError.code,
    DeadlineExceededError.code,
    OutOfMemoryError.code,
    GenerationFailedError.code,
    RETURNED,
)
"""Outcomes exported as 0 from the start, so that rates include the first occurrence."""
_CALL_OUTCOMES = ("done", "failed", "out_of_memory_split", "stopped")
_FALLBACKS = (
    *("signature", "opaque argument", "no rows", "unknown batch dimension"),
    *("opaque output", "output", "random", "mismatch", "unequal", "error"),
)
"""Reasons for forwards that are not shared; exported as 0 from the start, too."""
_PREFIX = "imagegen_worker_"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Snapshot:
    """A copy of the core's state."""

    ready: bool = False
    loaded_models: int = 0
    draining: bool = False
    registered: int = 0
    queued: int = 0
    running: int = 0
    finished: int = 0
    finished_bytes: int = 0
    stats: WorkerStats = field(default_factory=WorkerStats)
    costs: Mapping[str, CostModel] = field(default_factory=dict)
    outcomes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))


class Metrics(Collector):
    """All metrics of one worker, and the HTTP server that exports them after `serve`.

    The main thread calls `observe`, `update` and `close`, the HTTP threads `collect` and `not_ready_reason`.
    """

    def __init__(self, config: WorkerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._config = config
        self._clock = clock
        self._identity = (config.worker_name, str(config.gpu))
        self._snapshot = _Snapshot()
        self._stepped_at: float | None = None
        self._http: HttpServer | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.registry.register(GpuCollector(config))
        self._queue_wait = self._histogram("queue_wait_seconds", "Time from arrival to the start of the batch.")
        self._generation = self._histogram(
            "generation_seconds", "Time from the start of the batch to the last image."
        )
        self._encode = self._histogram("encode_seconds", "Time to encode the images of one request.")
        self._rows = self._histogram("rows_per_call", "Batch dimension of a successful call.", ROWS_BUCKETS)
        self._predictions = self._histogram(
            "prediction_ratio",
            "Predicted device time of a request, divided by the time that it took.",
            RATIO_BUCKETS,
        )
        self._calls = Counter(
            _PREFIX + "calls",
            "Calls of the backend, or forwards of the denoiser, by outcome. A split one ran out of memory and is "
            "retried in halves.",
            ["worker", "gpu", "outcome"],
            registry=self.registry,
        )
        self._step = self._histogram("step_seconds", "Time of one denoising step of a batch.", STEP_BUCKETS)
        self._first_step = self._histogram(
            "first_step_wait_seconds", "Time from arrival to the first denoising step."
        )
        self._beside_seconds = self._count(
            "beside_seconds",
            "Time of the device in text encoders and decoders; part of the busy seconds.",
        )
        self._steps = self._count("image_steps", "Denoising steps, counted for each image.")
        self._pixels = self._count("pixels", "Pixels of the images of finished requests.")
        self._fallbacks = Counter(
            _PREFIX + "fallbacks",
            "Forwards that could not be shared, by reason.",
            ["worker", "gpu", "reason"],
            registry=self.registry,
        )
        self._loads = Counter(
            _PREFIX + "model_loads",
            "Models loaded on request, by outcome.",
            ["worker", "gpu", "outcome"],
            registry=self.registry,
        )
        for outcome in ("done", "failed"):
            self._loads.labels(*self._identity, outcome)
        for outcome in _CALL_OUTCOMES:
            self._calls.labels(*self._identity, outcome)
        for reason in _FALLBACKS:
            self._fallbacks.labels(*self._identity, reason)

    def serve(self, host: str, port: int) -> int:
        """Start the HTTP server; return its port, a free one for 0. Raises OSError if it cannot be bound."""
        self._http = HttpServer(host, port, self.registry, self.not_ready_reason)
        return self._http.port

    def close(self) -> None:
        """Stop the HTTP server."""
        if self._http is not None:
            self._http.close()

    # ---- the main thread -----------------------------------------------------------------------------------

    def observe(self, event: EngineEvent) -> None:
        """Count an event of the engine."""
        match event:
            case ModelLoading():
                self._stepped_at = None
            case ModelLoaded():
                self._loads.labels(*self._identity, "done").inc()
            case ModelLoadFailed():
                self._loads.labels(*self._identity, "failed").inc()
            case Started() | Stepped():
                self._stepped_at = self._clock()
            case Idle():
                self._stepped_at = None
            case Finished():
                self._queue_wait.observe(event.queue_seconds)
                self._generation.observe(event.generation_seconds)
                self._encode.observe(event.encode_seconds)
                self._pixels.inc(sum(info.width * info.height for info in event.infos))
            case CallDone():
                self._observe_call(event)
            case CostsMeasured():
                if event.predicted is not None and event.seconds > 0:
                    self._predictions.observe(event.predicted / event.seconds)
            case CallFailed():
                outcome = "out_of_memory_split" if event.split else "stopped" if event.stopped else "failed"
                self._calls.labels(*self._identity, outcome).inc()

    def _observe_call(self, event: CallDone) -> None:
        self._calls.labels(*self._identity, "done").inc()
        self._rows.observe(event.rows or event.images)
        self._step.observe(event.seconds / max(event.steps, 1))
        # A static call makes all steps of its images; a forward makes one step of each of its images.
        self._steps.inc(event.steps * (event.requests if event.rows else event.images))
        self._beside_seconds.inc(event.beside_seconds)
        for seconds in event.waits:
            self._first_step.observe(seconds)
        for reason in event.fallbacks:
            self._fallbacks.labels(*self._identity, reason).inc()

    def update(self, core: WorkerCore) -> None:
        """Copy the state of the core."""
        self._snapshot = _Snapshot(
            ready=core.ready,
            loaded_models=len(core.loaded_models),
            draining=core.draining,
            registered=core.registered,
            queued=core.held.queued_images(),
            running=core.held.running_images(),
            finished=len(core.held.finished),
            finished_bytes=core.held.finished_bytes,
            stats=core.counters.to_stats(),
            costs=core.costs,
            outcomes=dict.fromkeys(OUTCOMES, 0) | dict(core.counters.outcomes),
        )

    # ---- the HTTP threads ----------------------------------------------------------------------------------

    def not_ready_reason(self) -> str:
        """Return why brokers dispatch nothing to this worker now, or ""."""
        view = self._snapshot
        if not view.ready:
            return "the model is not loaded yet"
        if view.draining:
            return "the worker is draining"
        return "" if view.registered else "the worker is not registered with a broker"

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics that derive from the core; the registry holds the others."""
        view, stepped_at = self._snapshot, self._stepped_at
        step_age = 0.0 if stepped_at is None else self._clock() - stepped_at
        build = GaugeMetricFamily(
            _PREFIX + "build_info", "Always 1; the version is a label.", labels=["version", "backend", "batching"]
        )
        build.add_metric([version("imagegen-fleet"), self._config.backend, self._config.effective_batching], 1)
        yield build
        yield self._gauge("warm", "1 once the first model is loaded.", view.ready)
        yield self._gauge("warm_models", "Models that are loaded or being loaded.", view.loaded_models)
        yield self._gauge("draining", "1 while the worker drains.", view.draining)
        yield self._gauge("brokers", "Configured brokers.", len(self._config.brokers))
        yield self._gauge("registered_brokers", "Brokers that have the worker registered.", view.registered)
        yield self._gauge(
            "capacity_requests",
            "Maximum number of images of queued and running requests.",
            self._config.effective_capacity,
        )
        depth = {"queued": view.queued, "running": view.running}
        yield self._gauge("queue_depth", "Images of queued and running requests, by state.", depth, "state")
        yield self._gauge("unreleased_answers", "Answers that are not acknowledged yet.", view.finished)
        yield self._gauge("unreleased_bytes", "Bytes of unacknowledged answers.", view.finished_bytes)
        yield self._gauge(
            "step_age_seconds", "Time since the last step of the running batch; 0 when idle.", step_age
        )
        yield from self._cost_gauges(view.costs)
        stats = view.stats
        yield self._counter(
            "requests", "Requests that ended at this worker, by outcome.", view.outcomes, "outcome"
        )
        yield self._counter(
            "batched_requests", "Requests, or images, in successful calls.", stats.total_batched_requests
        )
        yield self._counter("images", "Generated images.", stats.total_images)
        yield self._counter("busy_seconds", "Time that the device was busy.", stats.busy_seconds)

    def _cost_gauges(self, costs: Mapping[str, CostModel]) -> Iterable[Metric]:
        forward = {model: each.forward_seconds for model, each in costs.items()}
        yield self._gauge("forward_seconds", "Measured fixed time of a forward.", forward, "model")
        megapixel = {model: each.megapixel_seconds for model, each in costs.items()}
        text = "Measured time per image and megapixel in a forward."
        yield self._gauge("forward_megapixel_seconds", text, megapixel, "model")
        error = {model: each.error for model, each in costs.items() if each.error is not None}
        text = "Mean relative error of the last predictions of the device time of requests."
        yield self._gauge("prediction_error_ratio", text, error, "model")

    # ---- construction --------------------------------------------------------------------------------------

    def _histogram(self, name: str, text: str, buckets: Iterable[float] = SECONDS_BUCKETS) -> Histogram:
        return Histogram(
            _PREFIX + name, text, ["worker", "gpu"], registry=self.registry, buckets=tuple(buckets)
        ).labels(*self._identity)

    def _count(self, name: str, text: str) -> Counter:
        return Counter(_PREFIX + name, text, ["worker", "gpu"], registry=self.registry).labels(*self._identity)

    def _gauge(
        self, name: str, text: str, values: float | Mapping[str, float], label: str | None = None
    ) -> Metric:
        family = GaugeMetricFamily(_PREFIX + name, text, labels=self._labels(label))
        return self._fill(family, values)

    def _counter(
        self, name: str, text: str, values: float | Mapping[str, float], label: str | None = None
    ) -> Metric:
        family = CounterMetricFamily(_PREFIX + name, text, labels=self._labels(label))
        return self._fill(family, values)

    def _labels(self, label: str | None) -> list[str]:
        return ["worker", "gpu", *([label] if label else [])]

    def _fill(
        self, family: GaugeMetricFamily | CounterMetricFamily, values: float | Mapping[str, float]
    ) -> Metric:
        if isinstance(values, Mapping):
            for key, value in values.items():
                family.add_metric([*self._identity, key], value)
        else:
            family.add_metric(self._identity, values)
        return family

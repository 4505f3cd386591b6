"""Prometheus metrics of the worker. The core's state is copied once a turn; the HTTP thread sees copies only."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

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
    EngineEvent,
    Finished,
    Idle,
    Loaded,
    LoadFailed,
    Loading,
    Started,
    Stepped,
)
from imagegen_worker.core.worker import WorkerCore
from imagegen_worker.telemetry.gpu_metrics import GpuCollector
from imagegen_worker.telemetry.http import HttpServer

SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0)
STEP_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
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
"""Told from the start, as 0, so that the first one shows in a rate."""
_CALL_OUTCOMES = ("done", "failed", "out_of_memory_split", "stopped")
_FALLBACKS = ("signature", "opaque argument", "no rows", "opaque output", "output", "random", "unequal", "error")
"""Why a call of the model goes alone, as the backend says it: told from the start too."""
_PREFIX = "imagegen_worker_"


@dataclass(frozen=True, slots=True, kw_only=True)
class _View:
    """A copy of what the core knows."""

    warm: bool = False
    warm_models: int = 0
    draining: bool = False
    registered: int = 0
    queued: int = 0
    running: int = 0
    finished: int = 0
    finished_bytes: int = 0
    totals: WorkerStats = field(default_factory=WorkerStats)
    outcomes: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))


class Metrics(Collector):
    """All metrics of one worker, and the HTTP that shows them once `serve` was called.

    `observe`, `update` and `close` belong to the main thread, `collect` and `hindrance` to the HTTP threads.
    """

    def __init__(self, config: WorkerConfig, clock: Callable[[], float] = time.monotonic) -> None:
        prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
        self._config = config
        self._clock = clock
        self._identity = (config.worker_name, str(config.gpu))
        self._view = _View()
        self._stepped_at: float | None = None
        self._http: HttpServer | None = None
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self.registry.register(GpuCollector(config))
        self._queue_wait = self._histogram("queue_wait_seconds", "From arrival to the start of the batch.")
        self._generation = self._histogram("generation_seconds", "From the start of the batch to the last image.")
        self._encode = self._histogram("encode_seconds", "Encoding the images of one request.")
        self._rows = self._histogram("rows_per_call", "Batch dimension of a good call.", ROWS_BUCKETS)
        self._calls = Counter(
            _PREFIX + "calls",
            "Calls of the backend, or forwards of the denoiser, by outcome; a split one did not fit and is made "
            "again in halves.",
            ["worker", "gpu", "outcome"],
            registry=self.registry,
        )
        self._step = self._histogram("step_seconds", "One denoising step of a whole batch.", STEP_BUCKETS)
        self._first = self._histogram("first_step_wait_seconds", "From arrival to the first denoising step.")
        self._beside = self._count(
            "beside_seconds",
            "Seconds that the device spent in text encoders and decoders; part of the busy seconds.",
        )
        self._steps = self._count("image_steps", "Denoising steps made, one for each image that made it.")
        self._pixels = self._count("pixels", "Pixels of the images that were answered.")
        self._fallbacks = Counter(
            _PREFIX + "fallbacks",
            "Calls of the model that could not be shared and went alone, by reason.",
            ["worker", "gpu", "reason"],
            registry=self.registry,
        )
        self._loads = Counter(
            _PREFIX + "model_loads",
            "Models that were loaded because they were asked for, by outcome.",
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
        """Open the HTTP doors; return the port, which is a free one for 0. Raises OSError if it can't be bound."""
        self._http = HttpServer(host, port, self.registry, self.hindrance)
        return self._http.port

    def close(self) -> None:
        """Close the HTTP doors."""
        if self._http is not None:
            self._http.close()

    # ---- the main thread -----------------------------------------------------------------------------------

    def observe(self, event: EngineEvent) -> None:
        """Count what happened on the device."""
        match event:
            case Loading():
                self._stepped_at = None
            case Loaded():
                self._loads.labels(*self._identity, "done").inc()
            case LoadFailed():
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
                self._called(event)
            case CallFailed():
                outcome = "out_of_memory_split" if event.split else "stopped" if event.stopped else "failed"
                self._calls.labels(*self._identity, outcome).inc()

    def _called(self, event: CallDone) -> None:
        self._calls.labels(*self._identity, "done").inc()
        self._rows.observe(event.rows or event.images)
        self._step.observe(event.seconds / max(event.steps, 1))
        # A call of the static engine makes all steps of its images; one of the other, a step of those in it.
        self._steps.inc(event.steps * (event.requests if event.rows else event.images))
        self._beside.inc(event.beside_seconds)
        for seconds in event.waits:
            self._first.observe(seconds)
        for reason in event.fallbacks:
            self._fallbacks.labels(*self._identity, reason).inc()

    def update(self, core: WorkerCore) -> None:
        """Copy what the core knows now."""
        self._view = _View(
            warm=core.warm,
            warm_models=len(core.warm_models),
            draining=core.draining,
            registered=core.registered,
            queued=core.held.queued_images(),
            running=core.held.running_images(),
            finished=len(core.held.finished),
            finished_bytes=core.held.finished_bytes,
            totals=core.totals.for_wire(),
            outcomes=dict.fromkeys(OUTCOMES, 0) | dict(core.outcomes),
        )

    # ---- the HTTP threads ----------------------------------------------------------------------------------

    def hindrance(self) -> str:
        """Return why no work would come here now, or ""."""
        view = self._view
        if not view.warm:
            return "the model is not loaded yet"
        if view.draining:
            return "the worker is draining"
        return "" if view.registered else "no broker has registered the worker"

    def collect(self) -> Iterable[Metric]:
        """Yield what is a view of the core; the registry has the rest."""
        view, stepped_at = self._view, self._stepped_at
        step_age = 0.0 if stepped_at is None else self._clock() - stepped_at
        build = GaugeMetricFamily(
            _PREFIX + "build_info", "Always 1; the version is a label.", labels=["version", "backend", "batching"]
        )
        build.add_metric([version("imagegen-fleet"), self._config.backend, self._config.effective_batching], 1)
        yield build
        yield self._gauge("warm", "1 once the model is loaded.", view.warm)
        yield self._gauge("warm_models", "Models that are loaded, or are being loaded.", view.warm_models)
        yield self._gauge("draining", "1 while the worker takes no more and leaves.", view.draining)
        yield self._gauge("brokers", "Brokers that are dialled.", len(self._config.brokers))
        yield self._gauge("registered_brokers", "Brokers that have the worker registered.", view.registered)
        yield self._gauge("capacity_requests", "Images accepted at a time.", self._config.effective_capacity)
        depth = {"queued": view.queued, "running": view.running}
        yield self._gauge("queue_depth", "Images of the unanswered requests, by state.", depth, "state")
        yield self._gauge("unreleased_answers", "Answers kept until they have arrived.", view.finished)
        yield self._gauge("unreleased_bytes", "Bytes of the answers kept.", view.finished_bytes)
        yield self._gauge("step_age_seconds", "Since the last step of the running batch; 0 when idle.", step_age)
        totals = view.totals
        yield self._counter("requests", "Requests that ended here, by outcome.", view.outcomes, "outcome")
        yield self._counter(
            "batched_requests", "Requests, or images, in good calls.", totals.total_batched_requests
        )
        yield self._counter("images", "Images made.", totals.total_images)
        yield self._counter("busy_seconds", "Seconds that the device worked.", totals.busy_seconds)

    # ---- small things --------------------------------------------------------------------------------------

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

"""Prometheus metrics of the gateway."""

import time
from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
CLIENT_CLOSED_REQUEST = 499
"""Status recorded if the client disconnects before the response, as in nginx."""
REFUSALS = ("key", "limit", "in_flight", "rate", "bytes", "jobs", "streams")
JOB_OUTCOMES = ("succeeded", "failed", "cancelled")
WEBHOOK_OUTCOMES = ("delivered", "failed")


class Metrics:
    """All metrics, in a registry of their own. Ids are never labels."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        build = Gauge(
            "imagegen_gateway_build_info", "Always 1; the version is a label.", ["version"], registry=registry
        )
        build.labels(version=version("imagegen-fleet")).set(1)
        self.requests = Counter(
            "imagegen_gateway_requests",
            "HTTP requests that ended; status 499: the client disconnected.",
            ["method", "path", "status"],
            registry=registry,
        )
        self.duration = Histogram(
            "imagegen_gateway_request_duration_seconds",
            "Time from a request to the end of its response.",
            ["path"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "imagegen_gateway_requests_in_flight", "HTTP requests that have not ended.", registry=registry
        )
        self.refusals = Counter(
            "imagegen_gateway_refusals",
            "Requests rejected because of their API key, by reason.",
            ["reason"],
            registry=registry,
        )
        self.storage_failures = Counter(
            "imagegen_gateway_storage_failures",
            "Failed reads and writes of the database or the image store.",
            registry=registry,
        )
        self.jobs = Gauge("imagegen_gateway_jobs", "Jobs that have not ended.", registry=registry)
        self.jobs_ended = Counter(
            "imagegen_gateway_jobs_ended", "Jobs that ended, by outcome.", ["outcome"], registry=registry
        )
        self.webhooks = Counter(
            "imagegen_gateway_webhook_attempts", "Webhook attempts, by outcome.", ["outcome"], registry=registry
        )
        # Exported as 0 from the start, so that rate() includes the first increment.
        for counter, values in (
            (self.refusals, REFUSALS),
            (self.jobs_ended, JOB_OUTCOMES),
            (self.webhooks, WEBHOOK_OUTCOMES),
        ):
            for value in values:
                counter.labels(value)


class MetricsMiddleware:
    """Middleware that counts and times requests by route pattern, so that unknown paths add no labels."""

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics]) -> None:
        """Wrap an application. `metrics` is called for each request, as the lifespan creates the metrics."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count and time one HTTP request; pass other connections on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, started, status = self._metrics(), time.monotonic(), CLIENT_CLOSED_REQUEST

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, send_and_record)
        finally:
            metrics.in_flight.dec()
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE") else "other"
            metrics.requests.labels(method=method, path=path, status=str(status)).inc()
            metrics.duration.labels(path=path).observe(time.monotonic() - started)

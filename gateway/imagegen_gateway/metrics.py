"""The gateway's own metrics, for Prometheus."""

import time
from collections.abc import Callable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_BUCKETS = (0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
HUNG_UP = 499
"""The status that nobody was there to read, as nginx has it."""
REFUSALS = ("key", "limit", "in_flight", "rate", "streams")
JOBS_ENDED = ("succeeded", "failed", "cancelled")
WEBHOOKS = ("delivered", "failed")


class Metrics:
    """All of them, in a registry of their own; no ids as labels."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        build = Gauge(
            "imagegen_gateway_build_info", "Always 1; the version is a label.", ["version"], registry=registry
        )
        build.labels(version=version("imagegen-fleet")).set(1)
        self.requests = Counter(
            "imagegen_gateway_requests",
            "HTTP requests that ended; status 499: the client hung up.",
            ["method", "path", "status"],
            registry=registry,
        )
        self.duration = Histogram(
            "imagegen_gateway_request_duration_seconds",
            "From the request to the end of its answer.",
            ["path"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "imagegen_gateway_requests_in_flight", "HTTP requests that have not ended.", registry=registry
        )
        self.refused = Counter(
            "imagegen_gateway_refusals",
            "Requests that a key may not make, by reason.",
            ["reason"],
            registry=registry,
        )
        self.storage_failures = Counter(
            "imagegen_gateway_storage_failures",
            "Times that the disk, the database or the store of results did not take or give something.",
            registry=registry,
        )
        self.jobs = Gauge("imagegen_gateway_jobs", "Jobs that have not ended.", registry=registry)
        self.jobs_ended = Counter(
            "imagegen_gateway_jobs_ended", "Jobs that ended, by outcome.", ["outcome"], registry=registry
        )
        self.webhooks = Counter(
            "imagegen_gateway_webhook_attempts", "Calls of webhooks, by outcome.", ["outcome"], registry=registry
        )
        # Told from the start as 0, so that the first one shows in a rate.
        for counter, values in (
            (self.refused, REFUSALS),
            (self.jobs_ended, JOBS_ENDED),
            (self.webhooks, WEBHOOKS),
        ):
            for value in values:
                counter.labels(value)


class Measuring:
    """Counts and times each request, by the path's pattern: a path of one's own choice makes no new label."""

    def __init__(self, app: ASGIApp, metrics: Callable[[], Metrics]) -> None:
        """`metrics` is called when there is something to count: they are made with all else, later."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics, started, status = self._metrics(), time.monotonic(), HUNG_UP

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, watched)
        finally:
            metrics.in_flight.dec()
            path = getattr(scope.get("route"), "path", "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE") else "other"
            metrics.requests.labels(method=method, path=path, status=str(status)).inc()
            metrics.duration.labels(path=path).observe(time.monotonic() - started)

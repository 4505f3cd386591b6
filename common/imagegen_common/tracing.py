"""Traces: finished spans, sent to an OpenTelemetry collector by a thread of their own.

OpenTelemetry is imported when a tracer is opened: a program that sends no traces does not load it.
"""

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_PATH = "/v1/traces"
_EXPORT_SECONDS = 5
"""Maximum time that the end of a process waits for a collector that does not answer."""

Attribute = str | int | float | bool


class TracingError(ValueError):
    """Traces can't be sent; the message says why, and what is allowed."""


def check_otlp_endpoint(url: str) -> str:
    """Return the URL to which spans are posted, `/v1/traces` of a collector. Raises `TracingError`."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise TracingError(f"--otlp-endpoint must look like http://127.0.0.1:4318, got {url!r}")
    return url if parts.path.endswith(_PATH) else url.rstrip("/") + _PATH


def open_provider(endpoint: str, service: str, **resource: Attribute) -> "TracerProvider":
    """Return a provider that posts spans to a collector over OTLP/HTTP; `shutdown` sends the remaining ones.

    Raises `TracingError` for a wrong URL, and if the libraries are not installed.
    """
    url = check_otlp_endpoint(endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise TracingError(f"--otlp-endpoint: {error}; install imagegen-fleet[otel]") from error
    provider = TracerProvider(resource=Resource.create({"service.name": service, **resource}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)))
    return provider


class Tracer:
    """Creates spans of finished work; times are seconds of this process's monotonic clock."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("imagegen")
        self._propagator = TraceContextTextMapPropagator()
        self._since_epoch = time.time_ns() - time.monotonic_ns()

    def span(self, name: str, traceparent: str, start: float, end: float, **attributes: Attribute) -> None:
        """Send a span as a child of `traceparent`; an attribute `error` marks it as failed."""
        from opentelemetry.trace import Status, StatusCode

        span = self._tracer.start_span(
            name,
            context=self._propagator.extract({"traceparent": traceparent}),
            start_time=self._nanoseconds(start),
            attributes={f"imagegen.{key}": value for key, value in attributes.items()},
        )
        if "error" in attributes:
            span.set_status(Status(StatusCode.ERROR, str(attributes["error"])))
        span.end(self._nanoseconds(max(start, end)))

    def close(self) -> None:
        """Send the remaining spans, for a bounded time."""
        self._provider.shutdown()

    def _nanoseconds(self, seconds: float) -> int:
        return int(seconds * 1e9) + self._since_epoch


def open_tracer(endpoint: str, service: str, **resource: Attribute) -> Tracer:
    """Return a tracer that sends to a collector. Raises `TracingError` as `open_provider` does."""
    return Tracer(open_provider(endpoint, service, **resource))

"""Where the commands send their spans. OpenTelemetry is imported when it is asked for, and not before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_PATH = "/v1/traces"
_EXPORT_SECONDS = 5
"""How long the end of the command may wait for a collector that does not answer."""


def open_provider(endpoint: str) -> "TracerProvider":
    """Return a provider that posts spans to a collector over OTLP/HTTP, as the daemons do.

    Raises `click.UsageError` for a wrong URL, and where the libraries are not installed.
    """
    try:
        parts = urlsplit(endpoint)
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise click.UsageError(f"--otlp-endpoint must look like http://127.0.0.1:4318, got {endpoint!r}")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise click.UsageError(f"--otlp-endpoint: {error}; install imagegen-fleet[otel]") from error
    url = endpoint if parts.path.endswith(_PATH) else endpoint.rstrip("/") + _PATH
    provider = TracerProvider(resource=Resource.create({"service.name": "imagegen-client"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_EXPORT_SECONDS)))
    return provider


@contextmanager
def closing_provider(provider: "TracerProvider") -> Iterator[None]:
    """Send what is left at the end, for a bounded time."""
    try:
        yield
    finally:
        provider.shutdown()

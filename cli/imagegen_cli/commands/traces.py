"""OpenTelemetry spans of a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from imagegen_common.tracing import TracingError, open_provider

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@contextmanager
def traces_to(endpoint: str | None) -> "Iterator[TracerProvider | None]":
    """Yield a provider that exports spans to a collector, and flush it at the end; None without an endpoint.

    Raises `click.UsageError` for an invalid URL, and if OpenTelemetry is not installed.
    """
    if endpoint is None:
        yield None
        return
    try:
        provider = open_provider(endpoint, "imagegen-client")
    except TracingError as error:
        raise click.UsageError(str(error)) from error
    try:
        yield provider
    finally:
        provider.shutdown()

"""The spans of a command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from imagegen_common.tracing import TracingError, open_provider

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


@contextmanager
def traces_to(endpoint: str | None) -> "Iterator[TracerProvider | None]":
    """Yield a provider that posts spans to a collector, and send the remaining ones at the end; None for None.

    Raises `click.UsageError` for a wrong URL, and if the libraries are not installed.
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

"""OpenTelemetry spans of requests, created with the application's tracer provider.

OpenTelemetry is imported with the first provider: it is no dependency of the client.
"""

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from imagegen_protocol.messages import Submit

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


class RequestTracer:
    """Starts one span per request, a child of the application's current span."""

    def __init__(self, provider: "TracerProvider") -> None:
        from opentelemetry.trace import set_span_in_context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._context_of = set_span_in_context
        self._propagator = TraceContextTextMapPropagator()
        self._tracer = provider.get_tracer("imagegen")

    def start(self, submit: Submit) -> "tuple[Submit, Span]":
        """Start a span; return the request with the span's `traceparent`, and the span."""
        attributes = {"imagegen.request_id": submit.request_id.hex(), "imagegen.model": submit.model or "default"}
        span = self._tracer.start_span("request", attributes=attributes)
        headers: dict[str, str] = {}
        self._propagator.inject(headers, self._context_of(span))
        if (traceparent := headers.get("traceparent")) is None:  # the provider is a no-op
            return submit, span
        return msgspec.structs.replace(submit, traceparent=traceparent), span


def end_with(future: "Future[Any]", span: "Span") -> None:
    """End the span when `future` is done, and record its error or worker."""

    def end(done: "Future[Any]") -> None:
        if (error := done.exception()) is not None:
            span.record_exception(error)
            span.set_attribute("imagegen.error", str(getattr(error, "code", type(error).__name__)))
        else:
            span.set_attribute("imagegen.worker", done.result().worker)
        span.end()

    future.add_done_callback(end)

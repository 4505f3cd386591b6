"""A span for a whole request, made with the OpenTelemetry provider that the application gives."""

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec

from imagegen_protocol.messages import Submit

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider


class Traces:
    """Begins a span for each request, below the application's current one, and ends it with the answer."""

    def __init__(self, provider: "TracerProvider") -> None:
        self._tracer = provider.get_tracer("imagegen")

    def begin(self, submit: Submit) -> "tuple[Submit, Span]":
        """Return the request with the span's `traceparent`, and the span; `end_with` ends it."""
        words = {"imagegen.request_id": submit.request_id.hex(), "imagegen.model": submit.model or "default"}
        span = self._tracer.start_span("request", attributes=words)
        context = span.get_span_context()
        if not context.is_valid:  # a provider that records nothing
            return submit, span
        traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"
        return msgspec.structs.replace(submit, traceparent=traceparent), span


def end_with(future: "Future[Any]", span: "Span") -> None:
    """End the span when the answer is there; an error is recorded."""

    def end(done: "Future[Any]") -> None:
        if (error := done.exception()) is not None:
            span.record_exception(error)
            span.set_attribute("imagegen.error", str(getattr(error, "code", type(error).__name__)))
        else:
            span.set_attribute("imagegen.worker", done.result().worker)
        span.end()

    future.add_done_callback(end)

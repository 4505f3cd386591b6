"""Spans of requests at the broker, from their changes of state: `queue` and `dispatch`."""

from imagegen_broker.core.events import StateChange
from imagegen_broker.core.records import State
from imagegen_common.tracing import Attribute, Tracer

_SPANS = {State.QUEUED: "queue", State.DISPATCHED: "dispatch"}
"""The states that are recorded as spans, and the names of these."""


class Traces:
    """Records the spans of traced requests."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._since: dict[bytes, float] = {}
        """Time at which each traced request entered its present state."""

    def state_changed(self, change: StateChange, now: float) -> None:
        """End the span of the old state, and begin that of the new one."""
        since = self._since.pop(change.request_id, None)
        if since is not None and change.old in _SPANS:
            attributes: dict[str, Attribute] = {"request_id": change.request_id.hex(), "attempt": change.attempt}
            if change.worker is not None:
                attributes["worker"] = change.worker
            name = _SPANS[change.old]
            self._tracer.span(name, change.traceparent, since, now, **attributes, then=change.new.value)
        if change.new in _SPANS:
            self._since[change.request_id] = now

    @property
    def followed(self) -> int:
        """The number of requests with an open span."""
        return len(self._since)

    def close(self) -> None:
        """Send the remaining spans."""
        self._tracer.close()

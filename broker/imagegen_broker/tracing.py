"""Spans of requests at the broker, from their changes of state: `queue` and `dispatch`."""

from imagegen_broker.core.records import Moved, State
from imagegen_common.tracing import Attribute, Tracer

_NAMES = {State.QUEUED: "queue", State.DISPATCHED: "dispatch"}
"""The states that are worth a span."""


class Traces:
    """Follows each traced request; what is kept of one goes when the request does."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._since: dict[bytes, float] = {}

    def moved(self, move: Moved, now: float) -> None:
        """Take a change of state that happened just now."""
        since = self._since.pop(move.request_id, None)
        if since is not None and move.old in _NAMES:
            about: dict[str, Attribute] = {"request_id": move.request_id.hex(), "attempt": move.attempt}
            if move.worker is not None:
                about["worker"] = move.worker
            self._tracer.span(_NAMES[move.old], move.traceparent, since, now, **about, then=move.new.value)
        if move.new in _NAMES:
            self._since[move.request_id] = now

    @property
    def followed(self) -> int:
        """How many requests are followed now."""
        return len(self._since)

    def close(self) -> None:
        """Send what is left."""
        self._tracer.close()

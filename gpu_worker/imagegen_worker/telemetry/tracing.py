"""Spans of a request at the worker: `wait`, `forwards`, each `forward_group`, `decode`, `encode`, `delivery`."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from imagegen_common.tracing import Attribute, Tracer
from imagegen_protocol.messages import BrokerToWorker, Release, Work
from imagegen_worker.core.events import CallDone, EngineEvent, Failed, Finished, Started, Stepped

_MAX_REQUESTS = 4096
"""Maximum number of traced requests; the oldest is discarded, such as one whose RELEASE never arrived."""


@dataclass(slots=True)
class _Group:
    """Consecutive forwards with the same number of rows."""

    rows: int
    start: float
    end: float
    forwards: int = 1


@dataclass(slots=True)
class _RequestTrace:
    """The progress of a traced request. Times are monotonic seconds."""

    traceparent: str
    attempt: int
    received: float
    started: float | None = None
    stepped: float | None = None
    steps: int = 0
    forwards: int = 0
    rows: int = 0
    most_rows: int = 0
    answered: float | None = None
    numbers: list[int] = field(default_factory=list)
    group: _Group | None = None
    """The latest group, which the next forward may extend."""

    def add_forward(self, call: CallDone, now: float) -> _Group | None:
        """Count a forward of this request; return the group that it ends, if any."""
        rows = call.rows or call.requests
        self.forwards += 1
        self.rows += rows
        self.most_rows = max(self.most_rows, rows)
        group = self.group
        if group is not None and group.rows == rows:
            group.forwards, group.end = group.forwards + 1, now
            return None
        # The engine reports forwards late if the device is ahead: a group starts after the end of the last one.
        start = now - call.seconds if group is None else max(group.end, now - call.seconds)
        self.group = _Group(rows, start, now)
        return group


class RequestTraces:
    """Traces each request that has a traceparent, from WORK to RELEASE."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._traces: OrderedDict[bytes, _RequestTrace] = OrderedDict()
        self._ids: dict[int, bytes] = {}
        """Request ids of traced jobs that have started, by job number."""

    def on_message(self, message: BrokerToWorker, now: float) -> None:
        """Handle a message of a broker; call it before the core handles it."""
        match message:
            case Work(request_id=request_id, traceparent=str(traceparent)):
                if request_id not in self._traces:
                    self._traces[request_id] = _RequestTrace(traceparent, message.attempt, now)
                    if len(self._traces) > _MAX_REQUESTS:
                        self._forget(*self._traces.popitem(last=False))
            case Release():
                for request_id in message.request_ids:
                    if (trace := self._traces.pop(request_id, None)) is not None:
                        self._forget(request_id, trace)
                        self._released(request_id, trace, now)

    def on_event(self, event: EngineEvent, find: Callable[[int], bytes | None], now: float) -> None:
        """Handle an event of the engine before the core does. `find` returns the request id of a job number."""
        match event:
            case CallDone():
                for number in event.numbers:
                    if (request_id := self._ids.get(number)) is not None:
                        trace = self._traces[request_id]
                        self._group_span(request_id, trace, trace.add_forward(event, now))
            case Started():
                for number in event.numbers:
                    for request_id, trace in self._find_traces((number,), find):
                        self._ids[number] = request_id
                        trace.numbers.append(number)
                        if trace.started is None:
                            trace.started = now
                            self._span("wait", request_id, trace, trace.received, now)
            case Stepped():
                for _, trace in self._find_traces(event.numbers, find):
                    trace.stepped, trace.steps = now, event.step
            case Finished():
                for request_id, trace in self._find_traces((event.number,), find):
                    self._finished(request_id, trace, event, now)
            case Failed():
                for request_id, trace in self._find_traces((event.number,), find):
                    trace.answered = now
                    self._aborted(request_id, trace, now, error=event.code)

    @property
    def active(self) -> int:
        """Number of requests that are traced now."""
        return len(self._traces)

    def close(self) -> None:
        """Export the remaining spans."""
        self._tracer.close()

    def _find_traces(
        self, numbers: tuple[int, ...], find: Callable[[int], bytes | None]
    ) -> list[tuple[bytes, _RequestTrace]]:
        ids = [request_id for number in numbers if (request_id := find(number)) is not None]
        return [(request_id, self._traces[request_id]) for request_id in ids if request_id in self._traces]

    def _forget(self, request_id: bytes, trace: _RequestTrace) -> None:
        """Stop tracing a request; export its last group, which may have been reported after its end."""
        for number in trace.numbers:
            self._ids.pop(number, None)
        self._group_span(request_id, trace, trace.group)

    def _group_span(self, request_id: bytes, trace: _RequestTrace, group: _Group | None) -> None:
        if group is not None:
            about: dict[str, Attribute] = {"rows": group.rows, "forwards": group.forwards}
            self._span("forward_group", request_id, trace, group.start, group.end, **about)

    def _finished(self, request_id: bytes, trace: _RequestTrace, event: Finished, now: float) -> None:
        encoded_from = now - event.encode_seconds
        started = trace.received if trace.started is None else trace.started
        stepped = started if trace.stepped is None else trace.stepped
        decoded = max(stepped, min(encoded_from, started + event.generation_seconds))
        self._span(
            "forwards", request_id, trace, started, stepped, batch_size=event.batch_size, **_forwards(trace)
        )
        self._span("decode", request_id, trace, stepped, decoded, images=len(event.images))
        self._span("encode", request_id, trace, encoded_from, now, bytes=sum(map(len, event.images)))
        trace.answered = now

    def _released(self, request_id: bytes, trace: _RequestTrace, now: float) -> None:
        if trace.answered is not None:
            self._span("delivery", request_id, trace, trace.answered, now)
        else:
            self._aborted(request_id, trace, now, released=True)

    def _aborted(self, request_id: bytes, trace: _RequestTrace, now: float, **reason: Attribute) -> None:
        if trace.started is None:
            self._span("wait", request_id, trace, trace.received, now, **reason)
        else:
            self._span("forwards", request_id, trace, trace.started, now, **_forwards(trace), **reason)

    def _span(
        self, name: str, request_id: bytes, trace: _RequestTrace, start: float, end: float, **more: Attribute
    ) -> None:
        attributes: dict[str, Attribute] = {"request_id": request_id.hex(), "attempt": trace.attempt}
        self._tracer.span(name, trace.traceparent, start, end, **attributes, **more)


def _forwards(trace: _RequestTrace) -> dict[str, Attribute]:
    """Return the steps of a request, and the mean and maximum rows of its forwards.

    The engine reports a forward when the next one ends, so the last one of a request may be missing.
    """
    if not trace.forwards:
        return {"steps": trace.steps}
    mean = round(trace.rows / trace.forwards, 3)
    return {"steps": trace.steps, "rows": mean, "most_rows": trace.most_rows}

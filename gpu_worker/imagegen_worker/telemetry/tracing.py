"""Spans of requests at the worker: `wait`, `forwards`, each `forward_group`, `decode`, `encode`, `delivery`."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from imagegen_common.tracing import Attribute, Tracer
from imagegen_protocol.messages import BrokerToWorker, Release, Work
from imagegen_worker.core.events import CallDone, EngineEvent, Failed, Finished, Started, Stepped

_MAX_FOLLOWED = 4096
"""Requests that are followed at a time: answers that are dropped unreleased are forgotten so."""


@dataclass(slots=True)
class _Group:
    """Forwards one after the other with as many rows; nobody came or left between them."""

    rows: int
    start: float
    end: float
    forwards: int = 1


@dataclass(slots=True)
class _Course:
    """How far a request is; times in seconds of the monotonic clock."""

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
    """The forwards told of last, which the next one may join."""

    def joined(self, call: CallDone, now: float) -> _Group | None:
        """Count a forward that this request was in; return the group that has ended with it."""
        rows = call.rows or call.requests
        self.forwards += 1
        self.rows += rows
        self.most_rows = max(self.most_rows, rows)
        group = self.group
        if group is not None and group.rows == rows:
            group.forwards, group.end = group.forwards + 1, now
            return None
        # Forwards are told late where the device works ahead: no group begins before the last one has ended.
        begun = now - call.seconds if group is None else max(group.end, now - call.seconds)
        self.group = _Group(rows, begun, now)
        return group


class Traces:
    """Follows each traced request from WORK to RELEASE, by what passes through the shell."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        self._courses: OrderedDict[bytes, _Course] = OrderedDict()
        self._ids: dict[int, bytes] = {}
        """Of the jobs that are followed, by their number with the engine, from their start on."""

    def received(self, message: BrokerToWorker, now: float) -> None:
        """Take a message of a broker, before the core does."""
        match message:
            case Work(request_id=request_id, traceparent=str(traceparent)):
                if request_id not in self._courses:
                    self._courses[request_id] = _Course(traceparent, message.attempt, now)
                    if len(self._courses) > _MAX_FOLLOWED:
                        self._forget(*self._courses.popitem(last=False))
            case Release():
                for request_id in message.request_ids:
                    if (course := self._courses.pop(request_id, None)) is not None:
                        self._forget(request_id, course)
                        self._released(request_id, course, now)

    def event(self, event: EngineEvent, find: Callable[[int], bytes | None], now: float) -> None:
        """Take an event of the engine, before the core does; `find` gives the request id of a job's number."""
        match event:
            case CallDone():
                for number in event.numbers:
                    if (followed := self._ids.get(number)) is not None:
                        course = self._courses[followed]
                        self._tell_group(followed, course, course.joined(event, now))
            case Started():
                for number in event.numbers:
                    for request_id, course in self._of((number,), find):
                        self._ids[number] = request_id
                        course.numbers.append(number)
                        if course.started is None:
                            course.started = now
                            self._tell("wait", request_id, course, course.received, now)
            case Stepped():
                for _, course in self._of(event.numbers, find):
                    course.stepped, course.steps = now, event.step
            case Finished():
                for request_id, course in self._of((event.number,), find):
                    self._finished(request_id, course, event, now)
            case Failed():
                for request_id, course in self._of((event.number,), find):
                    course.answered = now
                    self._broken_off(request_id, course, now, error=event.code)

    @property
    def followed(self) -> int:
        """How many requests are followed now."""
        return len(self._courses)

    def close(self) -> None:
        """Send what is left."""
        self._tracer.close()

    def _of(self, numbers: tuple[int, ...], find: Callable[[int], bytes | None]) -> list[tuple[bytes, _Course]]:
        ids = [request_id for number in numbers if (request_id := find(number)) is not None]
        return [(request_id, self._courses[request_id]) for request_id in ids if request_id in self._courses]

    def _forget(self, request_id: bytes, course: _Course) -> None:
        """Tell the last group of a request that is followed no more: it may have been told of after the end."""
        for number in course.numbers:
            self._ids.pop(number, None)
        self._tell_group(request_id, course, course.group)

    def _tell_group(self, request_id: bytes, course: _Course, group: _Group | None) -> None:
        if group is not None:
            about: dict[str, Attribute] = {"rows": group.rows, "forwards": group.forwards}
            self._tell("forward_group", request_id, course, group.start, group.end, **about)

    def _finished(self, request_id: bytes, course: _Course, event: Finished, now: float) -> None:
        encoded_from = now - event.encode_seconds
        started = course.received if course.started is None else course.started
        stepped = started if course.stepped is None else course.stepped
        decoded = max(stepped, min(encoded_from, started + event.generation_seconds))
        company = event.batch_size
        self._tell("forwards", request_id, course, started, stepped, batch_size=company, **_forwards(course))
        self._tell("decode", request_id, course, stepped, decoded, images=len(event.images))
        self._tell("encode", request_id, course, encoded_from, now, bytes=sum(map(len, event.images)))
        course.answered = now

    def _released(self, request_id: bytes, course: _Course, now: float) -> None:
        if course.answered is not None:
            self._tell("delivery", request_id, course, course.answered, now)
        else:
            self._broken_off(request_id, course, now, released=True)

    def _broken_off(self, request_id: bytes, course: _Course, now: float, **why: Attribute) -> None:
        if course.started is None:
            self._tell("wait", request_id, course, course.received, now, **why)
        else:
            self._tell("forwards", request_id, course, course.started, now, **_forwards(course), **why)

    def _tell(
        self, name: str, request_id: bytes, course: _Course, start: float, end: float, **more: Attribute
    ) -> None:
        words: dict[str, Attribute] = {"request_id": request_id.hex(), "attempt": course.attempt}
        self._tracer.span(name, course.traceparent, start, end, **words, **more)


def _forwards(course: _Course) -> dict[str, Attribute]:
    """Return the steps of a request, and how full the device's forwards were meanwhile.

    A forward is told by the engine when the next one ends: the last one of a request may not be among them.
    """
    if not course.forwards:
        return {"steps": course.steps}
    mean = round(course.rows / course.forwards, 3)
    return {"steps": course.steps, "rows": mean, "most_rows": course.most_rows}

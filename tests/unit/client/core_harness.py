"""Test harness of the client core: simulated time and broker, and a record of every action."""

import logging
from typing import Any

from imagegen_client.core import ClientCore
from imagegen_client.events import (
    CancelRequested,
    CloseRequested,
    Complete,
    Connect,
    Event,
    InvalidMessage,
    LogEvent,
    Payload,
    Received,
    ReportProgress,
    Send,
    StatsRequested,
    SubmitRequested,
    Tick,
)
from imagegen_protocol import ProtocolError
from imagegen_protocol.messages import (
    Accepted,
    BrokerHeartbeat,
    BrokerToClient,
    ClientHeartbeat,
    Error,
    ImageInfo,
    Progress,
    Result,
    Submit,
)

BODY = b"body"
FIRST = "tcp://first:1"
SECOND = "tcp://second:2"


def rid(number: int) -> bytes:
    """Return a request id."""
    return number.to_bytes(16, "big")


class CoreHarness:
    """Drives a core as the shell does: a tick after each event and at each deadline."""

    def __init__(self, *endpoints: str, interval: float = 1.0, **settings: Any) -> None:
        self.now = 100.0
        self.interval = interval
        self.core = ClientCore(endpoints or (FIRST,), **settings)
        self.sent: list[Any] = []
        self.payloads: dict[bytes, Payload] = {}
        self.connections: list[str] = []
        self.outcomes: dict[bytes, Any] = {}
        self.progress_reports: list[ReportProgress] = []
        self.warnings: list[LogEvent] = []
        self.ticks = 0

    # ---- the shell -----------------------------------------------------------------------------------------

    def handle(self, event: Event) -> None:
        self._perform(self.core.handle(event, self.now))
        self._perform(self.core.handle(Tick(), self.now))

    def advance(self, seconds: float, most_ticks: int = 10_000) -> None:
        """Let time pass with a tick at each deadline; fails if the deadline does not move forward."""
        end = self.now + seconds
        for _ in range(most_ticks):
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.ticks += 1
            self._perform(self.core.handle(Tick(), self.now))
        else:
            raise AssertionError("busy loop: the deadline does not move forward")
        self.now = end

    def _perform(self, actions) -> None:
        for action in actions:
            match action:
                case Send(message, payload):
                    assert self.connections, "nothing is sent before connecting"
                    self.sent.append(message)
                    if isinstance(message, Submit):
                        self.payloads[message.request_id] = payload
                case Complete(key, outcome):
                    assert key not in self.outcomes, "a request ends once"
                    self.outcomes[key] = outcome
                case ReportProgress():
                    assert action.key not in self.outcomes
                    self.progress_reports.append(action)
                case Connect(endpoint):
                    self.connections.append(endpoint)
                case LogEvent(level) if level >= logging.WARNING:
                    self.warnings.append(action)

    def take(self, kind: type | None = None) -> list[Any]:
        """Return the messages sent since the last call, of one type or all except heartbeats."""
        sent, self.sent = self.sent, []
        if kind is not None:
            return [message for message in sent if isinstance(message, kind)]
        return [message for message in sent if not isinstance(message, ClientHeartbeat)]

    # ---- the application -----------------------------------------------------------------------------------

    def submit(self, number: int, **fields: Any) -> bytes:
        key = rid(number)
        self.handle(SubmitRequested(Submit(request_id=key, **fields), (BODY,)))
        return key

    def stats(self, number: int, timeout: float = 5.0) -> bytes:
        self.handle(StatsRequested(rid(number), timeout))
        return rid(number)

    def cancel(self, number: int) -> None:
        self.handle(CancelRequested(rid(number)))

    def close(self) -> None:
        self.handle(CloseRequested())

    # ---- the broker ----------------------------------------------------------------------------------------

    def receive(self, message: BrokerToClient, *payload: bytes) -> None:
        self.handle(Received(message, payload))

    def heartbeat(self, epoch: bytes = b"e" * 16, session: int = 1, interval: float | None = None) -> None:
        seconds = self.interval if interval is None else interval
        self.receive(BrokerHeartbeat(epoch=epoch, session=session, interval_seconds=seconds, liveness=3))

    def advance_with_heartbeats(self, seconds: float) -> None:
        """Let time pass while the broker sends heartbeats."""
        end = self.now + seconds
        while self.now < end:
            self.advance(min(self.interval, end - self.now))
            self.heartbeat()

    def accepted(self, *ids: bytes) -> None:
        self.receive(Accepted(request_ids=list(ids)))

    def progress(self, request_id: bytes) -> None:
        self.receive(Progress(request_id=request_id, step=1, steps=2))

    def result(self, request_id: bytes, frames: int = 1, images: int = 1) -> None:
        info = [ImageInfo(format="png", width=1, height=1, seed=1)] * images
        message = Result(request_id=request_id, worker="w", model="m", images=info)
        self.receive(message, *[b"image"] * frames)

    def error(self, request_id: bytes | None, code: str = "generation_failed", after: float | None = None) -> None:
        self.receive(Error(code=code, message="text", request_id=request_id, retry_after_seconds=after))

    def receive_invalid(self, request_id: bytes | None) -> None:
        problem = ProtocolError("not a message")
        problem.request_id = request_id
        self.handle(InvalidMessage(problem))


def connected(*endpoints: str, **settings: Any) -> CoreHarness:
    """Return a harness with an established connection and an accepted request 99."""
    harness = CoreHarness(*endpoints, **settings)
    harness.submit(99)
    harness.heartbeat()
    harness.accepted(rid(99))
    harness.take()
    return harness

"""Test harness of the client core: simulated time and broker, and a record of every action."""

import logging
from typing import Any

import msgspec

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
    ReportWaiting,
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
    Chunk,
    ClientHeartbeat,
    Error,
    Fetch,
    ImageInfo,
    Progress,
    Result,
    Stats,
    Submit,
)
from imagegen_protocol.transfers import chunks, sizes_of

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
        self.waiting_reports: list[ReportWaiting] = []
        self.warnings: list[LogEvent] = []
        self.notes: list[LogEvent] = []
        """Log events of the level INFO."""
        self.token = b""
        """Token of the last chunk that was received."""
        self.sent_chunks: list[tuple[Chunk, bytes]] = []
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
                    elif isinstance(message, Chunk):
                        self.sent_chunks.append((message, bytes(payload[0])))
                case Complete(key, outcome):
                    assert key not in self.outcomes, "a request ends once"
                    self.outcomes[key] = outcome
                case ReportProgress():
                    assert action.key not in self.outcomes
                    self.progress_reports.append(action)
                case ReportWaiting():
                    assert action.key not in self.outcomes
                    self.waiting_reports.append(action)
                case Connect(endpoint):
                    self.connections.append(endpoint)
                case LogEvent(level) if level >= logging.WARNING:
                    self.warnings.append(action)
                case LogEvent(logging.INFO):
                    self.notes.append(action)

    def take(self, kind: type | None = None) -> list[Any]:
        """Return the messages sent since the last call, of one type or all except heartbeats."""
        sent, self.sent = self.sent, []
        if kind is not None:
            return [message for message in sent if isinstance(message, kind)]
        return [message for message in sent if not isinstance(message, ClientHeartbeat)]

    # ---- the application -----------------------------------------------------------------------------------

    def submit(self, number: int, payload: Payload = (BODY,), **fields: Any) -> bytes:
        key = rid(number)
        self.handle(SubmitRequested(Submit(request_id=key, **fields), payload))
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

    def heartbeat(
        self, epoch: bytes = b"e" * 16, session: int = 1, interval: float | None = None, **fields: Any
    ) -> None:
        seconds = self.interval if interval is None else interval
        self.receive(BrokerHeartbeat(epoch=epoch, session=session, interval_seconds=seconds, liveness=3, **fields))

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

    def announce(self, request_id: bytes, *frames: bytes, payload_id: bytes = b"p" * 16, images: int = 0) -> None:
        """Send a RESULT whose payload is fetched."""
        info = [ImageInfo(format="png", width=1, height=1, seed=1)] * (images or len(frames))
        self.receive(
            Result(
                request_id=request_id,
                worker="w",
                model="m",
                images=info,
                payload_id=payload_id,
                frame_bytes=sizes_of(frames),
            )
        )

    def announce_stats(self, request_id: bytes, frame: bytes, payload_id: bytes = b"p" * 16) -> None:
        """Send a STATS whose payload is fetched."""
        self.receive(Stats(request_id=request_id, payload_id=payload_id, frame_bytes=[len(frame)]))

    def answer_fetches(self, *frames: bytes, most: int = 1_000_000) -> list[Fetch]:
        """Answer at most `most` FETCHes, and those that follow from it, with chunks; return them."""
        answered: list[Fetch] = []
        while len(answered) < most and (fetches := self.take_fetches()):
            left = fetches[most - len(answered) :]
            answered += (now := fetches[: most - len(answered)])
            for fetch in now:
                for number, (chunk, data) in enumerate(chunks(frames, fetch)):
                    self.token = (fetch.offset + number + 1).to_bytes(16, "big")
                    self.receive(msgspec.structs.replace(chunk, token=self.token), bytes(data))
            self.sent += left
        return answered

    def take_fetches(self) -> list[Fetch]:
        """Return the FETCHes sent since the last call; other messages stay."""
        fetches = [message for message in self.sent if isinstance(message, Fetch)]
        self.sent = [message for message in self.sent if not isinstance(message, Fetch)]
        return fetches

    def error(self, request_id: bytes | None, code: str = "generation_failed", after: float | None = None) -> None:
        self.receive(Error(code=code, message="text", request_id=request_id, retry_after_seconds=after))

    def receive_invalid(
        self, request_id: bytes | None, kind: type[ProtocolError] = ProtocolError, *, is_answer: bool = True
    ) -> None:
        problem = kind("not a message")
        problem.request_id, problem.is_answer = request_id, is_answer
        self.handle(InvalidMessage(problem))


def connected(*endpoints: str, **settings: Any) -> CoreHarness:
    """Return a harness with an established connection and an accepted request 99."""
    harness = CoreHarness(*endpoints, **settings)
    harness.submit(99)
    harness.heartbeat()
    harness.accepted(rid(99))
    harness.take()
    return harness

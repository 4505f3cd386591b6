"""A client core on a desk: fake time, a fake broker's words, and everything it does kept in order."""

from typing import Any

from imagegen_client.core import ClientCore
from imagegen_client.events import (
    CancelAsked,
    CloseAsked,
    Dial,
    Event,
    Finish,
    Payload,
    Received,
    Report,
    Send,
    StatsAsked,
    SubmitAsked,
    Unreadable,
    Warn,
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
    """A request id."""
    return number.to_bytes(16, "big")


class Desk:
    """Drives a core as the shell does: settle after what came in, tick at each deadline."""

    def __init__(self, *endpoints: str, interval: float = 1.0, **settings: Any) -> None:
        self.now = 100.0
        self.interval = interval
        self.core = ClientCore(endpoints or (FIRST,), **settings)
        self.sent: list[Any] = []
        self.payloads: dict[bytes, Payload] = {}
        self.dials: list[str] = []
        self.ends: dict[bytes, Any] = {}
        self.reports: list[Report] = []
        self.warnings: list[str] = []
        self.ticks = 0

    # ---- the shell -----------------------------------------------------------------------------------------

    def event(self, event: Event) -> None:
        self._do(self.core.handle(event, self.now))
        self._do(self.core.settle())

    def advance(self, seconds: float, most_ticks: int = 10_000) -> None:
        """Let time pass, ticking at each deadline on the way; a core that never stops asking fails."""
        end = self.now + seconds
        for _ in range(most_ticks):
            deadline = self.core.next_deadline()
            if deadline is None or deadline > end:
                break
            self.now = max(self.now, deadline)
            self.ticks += 1
            self._do(self.core.tick(self.now))
            self._do(self.core.settle())
        else:
            raise AssertionError("a busy loop: the deadline does not move on")
        self.now = end

    def _do(self, actions) -> None:
        for action in actions:
            match action:
                case Send(message, payload):
                    assert self.dials, "nothing is sent before dialling"
                    self.sent.append(message)
                    if isinstance(message, Submit):
                        self.payloads[message.request_id] = payload
                case Finish(key, outcome):
                    assert key not in self.ends, "an end comes once"
                    self.ends[key] = outcome
                case Report():
                    assert action.key not in self.ends
                    self.reports.append(action)
                case Dial(endpoint):
                    self.dials.append(endpoint)
                case Warn(text):
                    self.warnings.append(text)

    def take(self, kind: type | None = None) -> list[Any]:
        """Return what was sent since the last call (of a kind), heartbeats left out unless asked for."""
        sent, self.sent = self.sent, []
        if kind is not None:
            return [message for message in sent if isinstance(message, kind)]
        return [message for message in sent if not isinstance(message, ClientHeartbeat)]

    # ---- the application -----------------------------------------------------------------------------------

    def submit(self, number: int, **fields: Any) -> bytes:
        key = rid(number)
        self.event(SubmitAsked(Submit(request_id=key, **fields), (BODY,)))
        return key

    def stats(self, number: int, timeout: float = 5.0) -> bytes:
        self.event(StatsAsked(rid(number), timeout))
        return rid(number)

    def cancel(self, number: int) -> None:
        self.event(CancelAsked(rid(number)))

    def close(self) -> None:
        self.event(CloseAsked())

    # ---- the broker ----------------------------------------------------------------------------------------

    def hear(self, message: BrokerToClient, *payload: bytes) -> None:
        self.event(Received(message, payload))

    def heartbeat(self, epoch: bytes = b"e" * 16, session: int = 1, interval: float | None = None) -> None:
        seconds = self.interval if interval is None else interval
        self.hear(BrokerHeartbeat(epoch=epoch, session=session, interval_seconds=seconds, liveness=3))

    def alive(self, seconds: float) -> None:
        """Let time pass while the broker lives."""
        end = self.now + seconds
        while self.now < end:
            self.advance(min(self.interval, end - self.now))
            self.heartbeat()

    def accepted(self, *ids: bytes) -> None:
        self.hear(Accepted(request_ids=list(ids)))

    def progress(self, request_id: bytes) -> None:
        self.hear(Progress(request_id=request_id, step=1, steps=2))

    def result(self, request_id: bytes, frames: int = 1, images: int = 1) -> None:
        info = [ImageInfo(format="png", width=1, height=1, seed=1)] * images
        message = Result(request_id=request_id, worker="w", model="m", images=info)
        self.hear(message, *[b"image"] * frames)

    def error(self, request_id: bytes | None, code: str = "generation_failed", after: float | None = None) -> None:
        self.hear(Error(code=code, message="words", request_id=request_id, retry_after_seconds=after))

    def unreadable(self, request_id: bytes | None) -> None:
        problem = ProtocolError("rubbish")
        problem.request_id = request_id
        self.event(Unreadable(problem))


def connected(*endpoints: str, **settings: Any) -> Desk:
    """A desk whose broker has spoken and has accepted request 99."""
    desk = Desk(*endpoints, **settings)
    desk.submit(99)
    desk.heartbeat()
    desk.accepted(rid(99))
    desk.take()
    return desk

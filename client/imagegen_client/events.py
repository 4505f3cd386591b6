"""Events that the client core takes and actions that it returns.

A `key` is the 16 bytes by which the shell knows one request or statistics query: the first `request_id` of a
request, any random bytes for a query.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from imagegen_protocol import ImagegenError, ProtocolError
from imagegen_protocol.messages import BrokerToClient, ClientMessage, Progress, Result, Stats, Submit

Payload = Sequence[bytes | memoryview]
"""The frames after the header; the core does not read them."""

# ---- events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubmitRequested:
    """The application submits a request, whose key is a random `submit.request_id`: it seeds retry jitter."""

    submit: Submit
    payload: Payload

    @property
    def key(self) -> bytes:
        """The key of the request."""
        return self.submit.request_id


@dataclass(frozen=True, slots=True)
class StatsRequested:
    """The application requests the broker's statistics, to arrive within `timeout_seconds`."""

    key: bytes
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The application cancels a request; `Complete` still follows."""

    key: bytes


@dataclass(frozen=True, slots=True)
class CloseRequested:
    """The application closes the client; unfinished requests end in `ClientClosedError`."""


@dataclass(frozen=True, slots=True)
class Received:
    """The broker sent a message on the current connection."""

    message: BrokerToClient
    payload: Payload = ()


@dataclass(frozen=True, slots=True)
class InvalidMessage:
    """The broker sent bytes that cannot be decoded; `error.request_id` names the request if it can be read."""

    error: ProtocolError


@dataclass(frozen=True, slots=True)
class HandshakeRejected:
    """The current endpoint rejected this client's credentials."""

    reason: str


@dataclass(frozen=True, slots=True)
class HandshakeFailed:
    """No handshake succeeds at the current endpoint, probably for `reason`; ZeroMQ keeps trying."""

    reason: str


@dataclass(frozen=True, slots=True)
class Disconnected:
    """The current connection was established and has broken."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The shell has delivered all available messages, or the time of `next_deadline()` was reached."""


ApplicationEvent = SubmitRequested | StatsRequested | CancelRequested | CloseRequested
ConnectionEvent = Received | InvalidMessage | HandshakeRejected | HandshakeFailed | Disconnected
Event = ApplicationEvent | ConnectionEvent | Tick

# ---- actions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Close the current connection, if any, and open a new one to `endpoint`."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message on the current connection; it may be lost."""

    message: ClientMessage
    payload: Payload = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer and its frames: the images, or the statistics as one msgpack map."""

    message: Result | Stats
    payload: Payload


@dataclass(frozen=True, slots=True)
class Complete:
    """The request or query `key` has ended; issued exactly once for each key."""

    key: bytes
    outcome: Answer | ImagegenError


@dataclass(frozen=True, slots=True)
class ReportProgress:
    """The request `key` has made progress."""

    key: bytes
    progress: Progress
    payload: Payload = ()


@dataclass(frozen=True, slots=True)
class ReportWaiting:
    """The request `key` waits because no broker serves this client."""

    key: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class LogEvent:
    """A log line; `level` as in `logging`."""

    level: int
    text: str
    fields: dict[str, str] = field(default_factory=dict)


Action = Connect | Send | Complete | ReportProgress | ReportWaiting | LogEvent

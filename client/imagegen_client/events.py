"""What goes into the client's core (events) and what comes out (actions). Plain records.

A *key* is the 16 bytes by which the shell knows one request or one question: the first `request_id`, or any
other random bytes for a question for statistics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from imagegen_protocol import ImagegenError, ProtocolError
from imagegen_protocol.messages import BrokerToClient, ClientMessage, Progress, Result, Stats, Submit

Payload = Sequence[bytes | memoryview]
"""The frames behind a header, opaque."""

# ---- events ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SubmitAsked:
    """Get this made. The key is `submit.request_id`, which must be random (retries take their jitter from it)."""

    submit: Submit
    payload: Payload

    @property
    def key(self) -> bytes:
        """The key of the answer."""
        return self.submit.request_id


@dataclass(frozen=True, slots=True)
class StatsAsked:
    """Get the broker's statistics within `timeout_seconds`."""

    key: bytes
    timeout_seconds: float


@dataclass(frozen=True, slots=True)
class CancelAsked:
    """Give the request up; its answer is still to come."""

    key: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A message of the broker that was dialled last."""

    message: BrokerToClient
    payload: Payload = ()


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Bytes came that are no message; `error.request_id` says whose, where that could be read."""

    error: ProtocolError


@dataclass(frozen=True, slots=True)
class Refused:
    """The broker at the endpoint dialled last has rejected this client's credentials."""

    reason: str


@dataclass(frozen=True, slots=True)
class Suspected:
    """No handshake succeeds at the endpoint dialled last, probably for this reason; it may mend itself."""

    reason: str


@dataclass(frozen=True, slots=True)
class Lost:
    """The connection had worked and has broken."""


@dataclass(frozen=True, slots=True)
class CloseAsked:
    """The client leaves; everything unfinished ends in `ClientClosedError`."""


Event = SubmitAsked | StatsAsked | CancelAsked | Received | Unreadable | Refused | Suspected | Lost | CloseAsked

# ---- actions ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dial:
    """Drop the connection, if there is one, and open a new one to `endpoint`."""

    endpoint: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send this on the connection dialled last."""

    message: ClientMessage
    payload: Payload = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A good terminal answer and its frames: the images, or the statistics as a msgpack map."""

    message: Result | Stats
    payload: Payload


@dataclass(frozen=True, slots=True)
class Finish:
    """The one end of the request or question `key`."""

    key: bytes
    outcome: Answer | ImagegenError


@dataclass(frozen=True, slots=True)
class Report:
    """The request is under way."""

    key: bytes
    progress: Progress
    payload: Payload = ()


@dataclass(frozen=True, slots=True)
class Warn:
    """A person should read this; it concerns no single request."""

    text: str


Action = Dial | Send | Finish | Report | Warn

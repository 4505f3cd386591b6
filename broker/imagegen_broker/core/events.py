"""The events that `BrokerCore` handles and the actions that it returns."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from imagegen_broker.core.records import State
from imagegen_protocol.errors import ProtocolError
from imagegen_protocol.limits import MAX_PRIORITY
from imagegen_protocol.messages import ClientMessage, Message, WorkerMessage

Role = Literal["clients", "workers"]
Payload = Sequence[Any]
"""The frames behind a header (bytes, or the socket's own frames). The core passes them on unread."""

# ---- actions ----------------------------------------------------------------------------------------


class SendToClient(msgspec.Struct, frozen=True, gc=False):
    """Send a message to a client. A `message` of type bytes is an encoded header that a worker sent."""

    client_id: bytes
    message: Message | bytes
    payload: Payload = ()
    answered_id: bytes | None = None
    """Id of the request that this terminal answer ends; None for other messages."""


class SendToWorker(msgspec.Struct, frozen=True, gc=False):
    """Send a message to a worker."""

    worker_id: bytes
    message: Message
    payload: Payload = ()


class LogEvent(NamedTuple):
    """Write a log line; `level` as in `logging`."""

    level: int
    text: str
    fields: dict[str, object]


class StateChange(NamedTuple):
    """Record that a traced request has changed its state; `worker` is the worker that it was at, if any."""

    request_id: bytes
    traceparent: str
    old: State
    new: State
    attempt: int
    worker: str | None


Send = SendToClient | SendToWorker
Action = Send | LogEvent | StateChange

# ---- events -----------------------------------------------------------------------------------------


class ReceivedFromClient(msgspec.Struct, frozen=True, gc=False):
    """A client has sent a message; `client_id` is its routing id, `key` its public key, if keys are used."""

    client_id: bytes
    message: ClientMessage
    payload: Payload = ()
    key: bytes = b""
    max_priority: int = MAX_PRIORITY
    """Maximum priority of the requests of its key."""


class ReceivedFromWorker(msgspec.Struct, frozen=True, gc=False):
    """A worker has sent a message; `worker_id` is its routing id, `header` the encoded message."""

    worker_id: bytes
    message: WorkerMessage
    header: bytes
    payload: Payload = ()


class Malformed(msgspec.Struct, frozen=True):
    """A peer has sent a message that cannot be decoded."""

    role: Role
    peer_id: bytes
    problem: ProtocolError


class KeyRevoked(msgspec.Struct, frozen=True):
    """A peer has sent a message with a key that is no longer allowed."""

    role: Role
    peer_id: bytes


class SendFailed(msgspec.Struct, frozen=True):
    """The socket did not accept a message: the peer has disconnected, or reads too slowly."""

    action: Send


class Flush(msgspec.Struct, frozen=True):
    """All messages that were available have been read, or the time of `next_deadline` has come.

    The core answers only this event with actions, so that it can combine messages to the same peer and schedule
    requests that arrive together.
    """


FLUSH = Flush()

Event = ReceivedFromClient | ReceivedFromWorker | Malformed | KeyRevoked | SendFailed | Flush

"""Encoding and decoding of header frames. Decoding raises `ProtocolError` and no other exception."""

from collections.abc import Callable, Collection
from typing import Any, TypeVar, get_args

import msgspec

from imagegen_protocol.error_texts import describe_validation_error, format_value
from imagegen_protocol.errors import ProtocolError, UnsupportedVersionError
from imagegen_protocol.limits import ID_BYTES, MAX_HEADER_BYTES, VERSION
from imagegen_protocol.messages import (
    OWN_VERSION,
    BrokerToClient,
    BrokerToWorker,
    ClientMessage,
    Message,
    WorkerMessage,
)

T = TypeVar("T", bound=Message)

_encoder = msgspec.msgpack.Encoder()
encode: Callable[[Message], bytes] = _encoder.encode
"""Return the header frame of a message."""


_MAX_SHOWN_TYPE = 32
_MAX_PROBLEM = 500
"""Maximum characters of an error message, which the peer gets back inside a header."""


class _Envelope(msgspec.Struct):
    type: Any = None
    v: Any = None
    request_id: Any = None


_envelope = msgspec.msgpack.Decoder(_Envelope)


_FRONTEND = "this is the broker's endpoint for clients; workers connect to its backend, usually port 5556"
_BACKEND = "this is the broker's endpoint for workers; clients connect to its frontend, usually port 5555"


def _types(messages: Any) -> frozenset[str]:
    """Return the values of `type` in a union of messages."""
    return frozenset(str(message.__struct_config__.tag) for message in get_args(messages))


def _decoder(
    decoder: msgspec.msgpack.Decoder[T], other_types: frozenset[str] = frozenset(), hint: str = ""
) -> Callable[[bytes], T]:
    """Return a function that decodes headers, and raises `ProtocolError` for each one that is not valid.

    `hint` is the error's text for messages of `other_types`.
    """
    decode = decoder.decode

    def decode_header(header: bytes) -> T:
        try:
            if len(header) > MAX_HEADER_BYTES:
                raise ValueError(f"is {len(header)} bytes long, at most {MAX_HEADER_BYTES} are allowed")
            message = decode(header)
            if message.v is OWN_VERSION:
                raise ValueError("v is missing")
            return message
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise _diagnose(header, error, other_types, hint) from error

    return decode_header


decode_from_client: Callable[[bytes], ClientMessage] = _decoder(
    msgspec.msgpack.Decoder(ClientMessage), _types(WorkerMessage) - _types(ClientMessage), _FRONTEND
)
"""Decode a header that a client sent. Raises `ProtocolError`."""

decode_from_worker: Callable[[bytes], WorkerMessage] = _decoder(
    msgspec.msgpack.Decoder(WorkerMessage), _types(ClientMessage) - _types(WorkerMessage), _BACKEND
)
"""Decode a header that a worker sent. Raises `ProtocolError`."""

decode_broker_to_client: Callable[[bytes], BrokerToClient] = _decoder(msgspec.msgpack.Decoder(BrokerToClient))
"""Decode a header that a broker sent to a client. Raises `ProtocolError`."""

decode_broker_to_worker: Callable[[bytes], BrokerToWorker] = _decoder(msgspec.msgpack.Decoder(BrokerToWorker))
"""Decode a header that a broker sent to a worker. Raises `ProtocolError`."""


def _diagnose(header: bytes, error: Exception, other_types: Collection[str], hint: str) -> ProtocolError:
    """Return the error for a header that can't be decoded; its text is `hint` for messages of `other_types`."""
    try:
        envelope = _envelope.decode(header[:MAX_HEADER_BYTES])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ProtocolError(_cut(f"the header frame is not a message: {error}"))
    if envelope.v != VERSION or isinstance(envelope.v, bool | float):
        version = "none" if envelope.v is None else format_value(envelope.v)
        text = f"expected protocol version {VERSION}, the message has {version}"
        problem: ProtocolError = UnsupportedVersionError(_cut(text))
    elif isinstance(envelope.type, str) and envelope.type in other_types:
        problem = ProtocolError(hint)
    else:
        kind = envelope.type[:_MAX_SHOWN_TYPE] if isinstance(envelope.type, str) else ""
        why = describe_validation_error(_fields(header), str(error))
        problem = ProtocolError(_cut(f"bad {kind or 'untyped'} message: {why}"))
    if isinstance(envelope.request_id, bytes) and len(envelope.request_id) == ID_BYTES:
        problem.request_id = envelope.request_id
    problem.is_answer = envelope.type in ("result", "error", "stats")
    return problem


def _fields(header: bytes) -> dict[str, Any]:
    """Return the fields of a header; an empty map if it is no map."""
    try:
        return msgspec.msgpack.decode(header, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return {}


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_PROBLEM else text[: _MAX_PROBLEM - 3] + "..."

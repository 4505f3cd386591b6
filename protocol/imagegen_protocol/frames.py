"""Headers to bytes and back. Whatever bytes are decoded, nothing but `ProtocolError` is raised."""

from collections.abc import Callable
from typing import Any

import msgspec

from imagegen_protocol.errors import ProtocolError, UnsupportedVersionError
from imagegen_protocol.explain import explain
from imagegen_protocol.limits import ID_BYTES, MAX_HEADER_BYTES, VERSION
from imagegen_protocol.messages import (
    BrokerToClient,
    BrokerToWorker,
    ClientMessage,
    Message,
    WorkerMessage,
)

_encoder = msgspec.msgpack.Encoder()
encode: Callable[[Message], bytes] = _encoder.encode
"""Return the header frame of a message."""


_MAX_SHOWN_TYPE = 32
_MAX_PROBLEM = 500
"""Characters of a complaint: whoever sent rubbish must not get more of it back, nor a header that is too long."""


class _Envelope(msgspec.Struct):
    type: str = ""
    v: int = -1
    request_id: Any = None


_envelope = msgspec.msgpack.Decoder(_Envelope)
_from_client: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_from_worker: msgspec.msgpack.Decoder[WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage)
_to_client: msgspec.msgpack.Decoder[BrokerToClient] = msgspec.msgpack.Decoder(BrokerToClient)
_to_worker: msgspec.msgpack.Decoder[BrokerToWorker] = msgspec.msgpack.Decoder(BrokerToWorker)


def decode_from_client(header: bytes) -> ClientMessage:
    """Decode what a broker reads on its frontend. Raises `ProtocolError`."""
    try:
        _check_size(header)
        return _from_client.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _diagnose(header, error) from error


def decode_from_worker(header: bytes) -> WorkerMessage:
    """Decode what a broker reads on its backend. Raises `ProtocolError`."""
    try:
        _check_size(header)
        return _from_worker.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _diagnose(header, error) from error


def decode_broker_to_client(header: bytes) -> BrokerToClient:
    """Decode what a client reads. Raises `ProtocolError`."""
    try:
        _check_size(header)
        return _to_client.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _diagnose(header, error) from error


def decode_broker_to_worker(header: bytes) -> BrokerToWorker:
    """Decode what a worker reads. Raises `ProtocolError`."""
    try:
        _check_size(header)
        return _to_worker.decode(header)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _diagnose(header, error) from error


def _check_size(header: bytes) -> None:
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"is {len(header)} bytes long, at most {MAX_HEADER_BYTES} are allowed")


def _diagnose(header: bytes, error: Exception) -> ProtocolError:
    """Say what is wrong with a header that did not decode."""
    try:
        envelope = _envelope.decode(header[:MAX_HEADER_BYTES])
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return ProtocolError(_cut(f"the header frame is not a message: {error}"))
    if envelope.v != VERSION:
        spoken = "none" if envelope.v == -1 else str(envelope.v)
        problem: ProtocolError = UnsupportedVersionError(
            f"protocol version {VERSION} is spoken here, the message has {spoken}"
        )
    else:
        why = explain(_fields(header), str(error))
        problem = ProtocolError(_cut(f"bad {envelope.type[:_MAX_SHOWN_TYPE] or 'untyped'} message: {why}"))
    if isinstance(envelope.request_id, bytes) and len(envelope.request_id) == ID_BYTES:
        problem.request_id = envelope.request_id
    problem.is_answer = envelope.type in ("result", "error")
    return problem


def _fields(header: bytes) -> dict[str, Any]:
    """Return what a header says, as far as it can be read at all."""
    try:
        return msgspec.msgpack.decode(header, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return {}


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_PROBLEM else text[: _MAX_PROBLEM - 3] + "..."

"""The exceptions of imagegen; `code` is the error code on the wire.

ImagegenError
├── RequestError                 the answer to one request
│   ├── InvalidRequestError      invalid_request
│   ├── ModelNotFoundError       model_not_found
│   ├── OverloadedError          overloaded (retry_after_seconds is set)
│   ├── DeadlineExceededError    deadline_exceeded
│   ├── CancelledError           cancelled
│   ├── PoisonRequestError       poison_request
│   ├── OutOfMemoryError         out_of_memory
│   └── GenerationFailedError    generation_failed
├── ProtocolError                protocol_error
│   ├── UnsupportedVersionError  unsupported_version
│   ├── WorkerNameTakenError     worker_name_taken
│   └── UnauthorizedError        unauthorized (also raised by the client if the broker rejects its key)
├── BrokerUnreachableError       broker_unreachable (raised by the client only)
└── ClientClosedError            client_closed (raised by the client only)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

RETURNED = "returned"
"""Error code of a request that a worker returns without having started it; clients never receive it."""


class ImagegenError(Exception):
    """Base of all errors. `code` is stable; `message` is for people; `retry_after_seconds` may be None."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class RequestError(ImagegenError):
    """A request failed."""

    code = "request_error"


class InvalidRequestError(RequestError):
    """The request is invalid; the message states the field, the value and the range."""

    code = "invalid_request"


class ModelNotFoundError(RequestError):
    """No worker serves the model; the message lists the models that are served."""

    code = "model_not_found"


class OverloadedError(RequestError):
    """A limit of the broker is reached; try again after `retry_after_seconds`."""

    code = "overloaded"


class DeadlineExceededError(RequestError):
    """`timeout_seconds` passed before the result arrived."""

    code = "deadline_exceeded"


class CancelledError(RequestError):
    """The client cancelled the request."""

    code = "cancelled"


class PoisonRequestError(RequestError):
    """As many workers as the broker allows died or hung while they ran the request."""

    code = "poison_request"


class OutOfMemoryError(RequestError):
    """The request does not fit into the device's memory, even alone."""

    code = "out_of_memory"


class GenerationFailedError(RequestError):
    """The pipeline raised an error, or the request was requeued too often; the message states the reason."""

    code = "generation_failed"


class ProtocolError(ImagegenError):
    """A message violates `docs/protocol.md`; `request_id` is set if it could be read."""

    code = "protocol_error"
    request_id: bytes | None = None
    is_answer: bool = False
    """Whether the message was a terminal answer (RESULT or ERROR)."""


class UnsupportedVersionError(ProtocolError):
    """The peer uses another protocol version."""

    code = "unsupported_version"


class WorkerNameTakenError(ProtocolError):
    """Another live worker has this name."""

    code = "worker_name_taken"


class UnauthorizedError(ProtocolError):
    """The broker rejects the peer's key, or has revoked it."""

    code = "unauthorized"


class BrokerUnreachableError(ImagegenError):
    """No broker answered in time.

    `suspicions` maps an endpoint to the likely reason why no handshake succeeds there; the message contains them.
    """

    code = "broker_unreachable"

    def __init__(
        self,
        message: str,
        *,
        retry_after_seconds: float | None = None,
        suspicions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        reasons = [f"{endpoint}: {reason}" for endpoint, reason in suspicions.items()]
        super().__init__("; ".join([message, *reasons]), retry_after_seconds=retry_after_seconds)
        self.suspicions = dict(suspicions)


class ClientClosedError(ImagegenError):
    """The client was closed before the request ended."""

    code = "client_closed"


_BY_CODE: dict[str, type[ImagegenError]] = {
    kind.code: kind
    for kind in (
        InvalidRequestError,
        ModelNotFoundError,
        OverloadedError,
        DeadlineExceededError,
        CancelledError,
        PoisonRequestError,
        OutOfMemoryError,
        GenerationFailedError,
        ProtocolError,
        UnsupportedVersionError,
        WorkerNameTakenError,
        UnauthorizedError,
    )
}


def error_from_wire(code: str, message: str, retry_after_seconds: float | None = None) -> ImagegenError:
    """Return the exception for an ERROR message; `RequestError` for an unknown code."""
    kind = _BY_CODE.get(code)
    if kind is None:
        return RequestError(f"{code}: {message}", retry_after_seconds=retry_after_seconds)
    return kind(message, retry_after_seconds=retry_after_seconds)

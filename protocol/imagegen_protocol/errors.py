"""One tree of typed errors; `code` is the wire's name of the type.

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
│   └── UnauthorizedError        unauthorized (or made by the client, when the broker rejected its key)
├── BrokerUnreachableError       broker_unreachable (made by the client, never on the wire)
└── ClientClosedError            client_closed (made by the client, never on the wire)
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

RETURNED = "returned"
"""The code with which a draining worker gives a request back unmade; never seen by a client."""


class ImagegenError(Exception):
    """Base of all. `code` is stable, `message` is for people, `retry_after_seconds` is None unless given."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_seconds = retry_after_seconds


class RequestError(ImagegenError):
    """The terminal answer to one request was an error."""

    code = "request_error"


class InvalidRequestError(RequestError):
    """The request can't be made as it stands; the message names the field, the value and the range."""

    code = "invalid_request"


class ModelNotFoundError(RequestError):
    """No worker serves the model; the message lists those that are served."""

    code = "model_not_found"


class OverloadedError(RequestError):
    """The queue is full; try again after `retry_after_seconds`."""

    code = "overloaded"


class DeadlineExceededError(RequestError):
    """`timeout_seconds` went by before the result was there."""

    code = "deadline_exceeded"


class CancelledError(RequestError):
    """The request was cancelled by its owner."""

    code = "cancelled"


class PoisonRequestError(RequestError):
    """The request took down as many workers as the broker allows."""

    code = "poison_request"


class OutOfMemoryError(RequestError):
    """The request does not fit on the device, even alone."""

    code = "out_of_memory"


class GenerationFailedError(RequestError):
    """The pipeline raised an error, or the request failed too often for other reasons; the message says which."""

    code = "generation_failed"


class ProtocolError(ImagegenError):
    """A message breaks the rules of `docs/protocol.md`; `request_id` is set where it could still be read."""

    code = "protocol_error"
    request_id: bytes | None = None
    is_answer: bool = False
    """Whether the message was a RESULT or an ERROR: a terminal answer that can't be read."""


class UnsupportedVersionError(ProtocolError):
    """The peer speaks another protocol version."""

    code = "unsupported_version"


class WorkerNameTakenError(ProtocolError):
    """A live worker already goes by this name."""

    code = "worker_name_taken"


class UnauthorizedError(ProtocolError):
    """The broker does not accept the peer's key, or no longer."""

    code = "unauthorized"


class BrokerUnreachableError(ImagegenError):
    """No broker answered in the time that the caller gave.

    `suspicions` maps an endpoint to the likely reason why no handshake succeeded there; the message contains them.
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
    """The client was closed while the request was unfinished."""

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
    """Return the exception for an ERROR message; a code of a later version becomes a `RequestError`."""
    kind = _BY_CODE.get(code)
    if kind is None:
        return RequestError(f"{code}: {message}", retry_after_seconds=retry_after_seconds)
    return kind(message, retry_after_seconds=retry_after_seconds)

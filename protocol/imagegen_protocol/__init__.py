"""The wire protocol between clients, brokers and workers: messages, frames, limits, requests and errors.

`docs/protocol.md` is normative. This package implements it and imports no other package of imagegen.
"""

from imagegen_protocol.errors import (
    BrokerUnreachableError,
    CancelledError,
    ClientClosedError,
    DeadlineExceededError,
    GenerationFailedError,
    ImagegenError,
    InvalidRequestError,
    ModelNotFoundError,
    OutOfMemoryError,
    OverloadedError,
    PoisonRequestError,
    ProtocolError,
    RequestError,
    UnauthorizedError,
    UnsupportedVersionError,
    WorkerNameTakenError,
    error_from_wire,
)
from imagegen_protocol.frames import (
    decode_broker_to_client,
    decode_broker_to_worker,
    decode_from_client,
    decode_from_worker,
    encode,
)
from imagegen_protocol.limits import VERSION
from imagegen_protocol.request import GenerationRequest, check_frames, encode_request, parse_request

__all__ = [
    "VERSION",
    "BrokerUnreachableError",
    "CancelledError",
    "ClientClosedError",
    "DeadlineExceededError",
    "GenerationFailedError",
    "GenerationRequest",
    "ImagegenError",
    "InvalidRequestError",
    "ModelNotFoundError",
    "OutOfMemoryError",
    "OverloadedError",
    "PoisonRequestError",
    "ProtocolError",
    "RequestError",
    "UnauthorizedError",
    "UnsupportedVersionError",
    "WorkerNameTakenError",
    "check_frames",
    "decode_broker_to_client",
    "decode_broker_to_worker",
    "decode_from_client",
    "decode_from_worker",
    "encode",
    "encode_request",
    "error_from_wire",
    "parse_request",
]

"""Client of an imagegen fleet.

    from imagegen_client import Client

    with Client("tcp://127.0.0.1:5555") as client:
        client.generate("a red circle on a blue background").save("circle.png")

`AsyncClient` is the asyncio version. All errors derive from `ImagegenError`.
"""

from imagegen_client.aio import AsyncClient, AsyncJob
from imagegen_client.job import Job
from imagegen_client.progress import Progress
from imagegen_client.requests import RequestOptions
from imagegen_client.result import GenerationResult
from imagegen_client.sync import Client
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
)
from imagegen_protocol.statistics import GpuStatistics, ModelStatistics, Statistics

__all__ = [
    "AsyncClient",
    "AsyncJob",
    "BrokerUnreachableError",
    "CancelledError",
    "Client",
    "ClientClosedError",
    "DeadlineExceededError",
    "GenerationFailedError",
    "GenerationResult",
    "GpuStatistics",
    "ImagegenError",
    "InvalidRequestError",
    "Job",
    "ModelNotFoundError",
    "ModelStatistics",
    "OutOfMemoryError",
    "OverloadedError",
    "PoisonRequestError",
    "Progress",
    "ProtocolError",
    "RequestError",
    "RequestOptions",
    "Statistics",
    "UnauthorizedError",
    "UnsupportedVersionError",
]

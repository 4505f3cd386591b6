"""The broker's statistics: the content of `/stats` and of the STATS message, and the result of `Client.stats`.

The broker writes every field. A reader ignores unknown fields, and uses the default of a field
that an older broker does not write. `docs/stats.schema.json` is the JSON schema of `Statistics`.
"""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from imagegen_protocol.capabilities import ModelCapabilities
from imagegen_protocol.costs import CostModel
from imagegen_protocol.errors import ProtocolError
from imagegen_protocol.limits import (
    MAX_FLOAT,
    MAX_GPU_ID,
    MAX_HEARTBEAT_INTERVAL_SECONDS,
    MIN_HEARTBEAT_INTERVAL_SECONDS,
)

_MAX = 2**53
Requests = Annotated[int, Meta(ge=0, le=_MAX, description="Requests.")]
Images = Annotated[int, Meta(ge=0, le=_MAX, description="Images.")]
Batches = Annotated[
    int, Meta(ge=0, le=_MAX, description="Batches; with continuous batching, forwards of the denoiser.")
]
Peers = Annotated[int, Meta(ge=0, le=_MAX, description="Workers or clients.")]
Messages = Annotated[int, Meta(ge=0, le=_MAX, description="Messages.")]
Bytes = Annotated[int, Meta(ge=0, le=_MAX, description="Bytes.")]
Seconds = Annotated[float, Meta(ge=0, le=MAX_FLOAT, description="Seconds.")]
Rate = Annotated[float, Meta(ge=0, le=MAX_FLOAT, description="Events per second.")]
Interval = Annotated[
    float, Meta(ge=MIN_HEARTBEAT_INTERVAL_SECONDS, le=MAX_HEARTBEAT_INTERVAL_SECONDS, description="Seconds.")
]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all statistics."""

    def __getitem__(self, name: str) -> Any:
        """Return the field `name`, as in the JSON object. Raises `KeyError` if there is no such field."""
        if name not in self.__struct_fields__:
            raise KeyError(name)
        return getattr(self, name)


class Heartbeat(Record, frozen=True, kw_only=True):
    """The broker's heartbeats."""

    interval_seconds: Interval = 1.0
    liveness: Annotated[
        int, Meta(ge=0, le=_MAX, description="Silent intervals after which a peer counts as dead.")
    ] = 3


class RequestCounts(Record, frozen=True, kw_only=True):
    """Requests that the broker holds, by state."""

    receiving: Requests = 0
    """Requests whose input images have not completely arrived."""
    queued: Requests = 0
    dispatched: Requests = 0
    """Requests at a worker, queued or running there."""
    delivered: Requests = 0
    """Answered requests that the client has not acknowledged."""


class Limits(Record, frozen=True, kw_only=True):
    """Limits of what the broker holds."""

    requests: Requests = 0
    bytes: Bytes = 0


class Totals(Record, frozen=True, kw_only=True):
    """Counts since the broker started."""

    accepted: Requests = 0
    acknowledged: Requests = 0
    abandoned: Requests = 0
    """Requests dropped because the client left or died."""
    dispatched: Requests = 0
    attached: Requests = 0
    """Requests attached to a worker that held them already."""
    resent: Requests = 0
    """Answers sent or requested again."""
    workers_registered: Peers = 0
    workers_lost: Peers = 0
    workers_stuck: Peers = 0
    clients_lost: Peers = 0
    malformed: Messages = 0
    received_bytes: Bytes = 0
    """Bytes of input images received in chunks."""
    relayed_bytes: Bytes = 0
    """Bytes of generated images relayed in chunks."""
    dropped: Messages = 0
    """Messages that a peer's connection did not accept."""
    answered: dict[str, Requests] = {}
    """Answered requests by outcome: `result`, or an error code."""
    rejected: dict[str, Requests] = {}
    """Rejected requests by error code."""
    requeued: dict[str, Requests] = {}
    """Requeued requests by reason."""


class ModelStatistics(Record, frozen=True, kw_only=True):
    """The demand for one model that is, or recently was, served or requested."""

    model: str
    workers: Peers = 0
    """Workers that serve the model and accept work."""
    idle_workers: Peers = 0
    """Those of them without requests."""
    waiting: Requests = 0
    """Requests that wait at the broker."""
    unfinished: Requests = 0
    """Requests that wait at the broker or are at workers."""
    seconds_per_request: Seconds | None = None
    """Device seconds of an average request; None before the first measurement."""
    backlog_seconds: Seconds = 0.0
    """Device seconds of the unfinished requests; each counts as an average one."""


class GpuStatistics(Record, frozen=True, kw_only=True):
    """One worker. Queue depth and capacity are counted in images."""

    gpu_id: Annotated[int, Meta(ge=0, le=MAX_GPU_ID, description="Index of the GPU on its host.")] = 0
    gpu_uuid: str | None = None
    worker: str
    host: str = ""
    pid: Annotated[int, Meta(ge=0, le=_MAX)] = 0
    version: str | None = None
    http: str | None = None
    """HOST:PORT of the worker's `/metrics`; None if it serves none."""
    device: str = ""
    backend: str = ""
    batching: str = ""
    models: list[str] = []
    """Names of the served models; the first is the worker's default."""
    warm_models: list[str] = []
    """Names of the models that are loaded, or are being loaded for a request."""
    state: Annotated[str, Meta(description="`ready`, `draining`, `unreachable` or `stuck`.")] = "unknown"
    current_queue_depth: Images = 0
    """Images of the requests at the worker, running and waiting. A request that another broker dispatched counts
    as one image."""
    running: Images = 0
    """Images that are being generated."""
    unacknowledged: Requests = 0
    """Answers that the worker keeps until the client acknowledges them."""
    capacity: Images = 0
    """Maximum images at the worker; the last request may exceed it."""
    max_batch_size: Images = 0
    dispatched: Requests = 0
    """Requests dispatched to the worker since it registered."""
    total_requests: Requests = 0
    """Requests that ended in a result since the worker started; the totals below count from then, too."""
    total_failed: Requests = 0
    total_batches: Batches = 0
    total_batched_requests: Requests = 0
    """Sum of the batch sizes."""
    avg_batch_size: Annotated[float, Meta(ge=0, le=MAX_FLOAT)] = 0.0
    total_images: Images = 0
    busy_seconds: Seconds = 0.0
    seconds_per_image: Seconds | None = None
    """Seconds for one image in a full batch; None while unknown."""
    costs: dict[str, CostModel] = {}
    """Measured costs by model, as the worker has reported them."""
    loaded_loras: list[str] = []
    """Names of the LoRAs that are loaded, as the worker has reported them."""
    step_age_seconds: Seconds | None = None
    """Seconds since the last step of the running batch; None when idle."""
    last_heard_seconds: Seconds = 0.0
    """Seconds since the broker received a message from the worker."""


class Statistics(Record, frozen=True, kw_only=True):
    """The state of one broker and its workers. Every number is finite, and integers are at most 2**53."""

    strategy: str = ""
    epoch: str = ""
    """Random id of this run of the broker, in hexadecimal."""
    version: str | None = None
    heartbeat: Heartbeat = Heartbeat()
    uptime_seconds: Seconds = 0.0
    default_model: str | None = None
    model_traits: dict[str, ModelCapabilities] = {}
    """Capabilities by model, as far as workers have reported them."""
    num_gpus: Peers = 0
    """Registered workers."""
    clients: Peers = 0
    held_clients: Peers = 0
    requests: RequestCounts = RequestCounts()
    queued_requests: Requests = 0
    """Requests that wait at the broker; the same as `requests.queued`."""
    held_bytes: Bytes = 0
    """Size of the requests that the broker holds, input images included."""
    transfer_bytes: Bytes = 0
    """Bytes of images that peers have requested or not confirmed."""
    limits: Limits = Limits()
    answers_per_second: Rate = 0.0
    totals: Totals = Totals()
    models: list[str] = []
    """Names of the models that registered workers serve."""
    per_model_stats: list[ModelStatistics] = []
    per_gpu_stats: list[GpuStatistics] = []


_json = msgspec.json.Encoder()
_msgpack = msgspec.msgpack.Encoder()


def to_json(statistics: Statistics) -> bytes:
    """Return the JSON object, indented."""
    return msgspec.json.format(_json.encode(statistics), indent=2)


def to_msgpack(statistics: Statistics) -> bytes:
    """Return the frame of a STATS message."""
    return _msgpack.encode(statistics)


def from_json(text: bytes | str) -> Statistics:
    """Return the statistics in a JSON object. Raises `ProtocolError`."""
    try:
        return _read(msgspec.json.decode(text))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the statistics can't be read: {error}") from error


def from_msgpack(frame: bytes | memoryview) -> Statistics:
    """Return the statistics in the frame of a STATS message. Raises `ProtocolError`."""
    try:
        return _read(msgspec.msgpack.decode(frame))
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ProtocolError(f"the statistics can't be read: {error}") from error


def _read(content: Any) -> Statistics:
    """Return typed statistics, without models whose capabilities only a newer version can read."""
    if isinstance(content, dict) and isinstance(models := content.get("model_traits"), dict):
        content["model_traits"] = {name: each for name, each in models.items() if _is_readable(each)}
    return msgspec.convert(content, Statistics)


def _is_readable(capabilities: Any) -> bool:
    try:
        msgspec.convert(capabilities, ModelCapabilities)
    except msgspec.ValidationError:
        return False
    return True


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of `Statistics`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(Statistics)}

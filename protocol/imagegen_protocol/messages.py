"""The header of each message as a struct; `docs/protocol.md` states who sends it, when, and why.

A header is a msgpack map with the keys `type` (the struct's tag), `v` (the protocol version) and the fields of the
struct. Unknown keys are ignored, so that later versions can add fields. An unknown type, a missing required field
and a value of a wrong type or out of range are errors.
"""

from enum import IntEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from imagegen_protocol.costs import NO_SHAPE, CostModel, RequestShape
from imagegen_protocol.fields import (
    Address,
    Code,
    Count,
    FrameSizes,
    Id,
    Ids,
    InlineBytes,
    Interval,
    Models,
    Name,
    Offset,
    ParameterValue,
    Priority,
    ReceiveMaximum,
    Seconds,
    SecondsPerImage,
    SidePixels,
    Timeout,
    Token,
    Traceparent,
)
from imagegen_protocol.limits import (
    DEFAULT_FETCH_WINDOW_BYTES,
    DEFAULT_INLINE_BYTES,
    MAX_CHUNK_BYTES,
    MAX_COST_MODELS,
    MAX_ERROR_MESSAGE_LENGTH,
    MAX_FETCH_BYTES,
    MAX_GPU_ID,
    MAX_IDS_PER_MESSAGE,
    MAX_IMAGES_PER_REQUEST,
    MAX_LIVENESS,
    MAX_LOADED_LORAS,
    MAX_PAYLOAD_BYTES,
    MAX_PAYLOAD_FRAMES,
    MAX_SEED,
    MAX_WARNING_LENGTH,
    MAX_WARNINGS,
    MIN_CHUNK_BYTES,
    VERSION,
)


class _Own(IntEnum):
    VERSION = VERSION


OWN_VERSION: Final = _Own.VERSION
"""The default of `v`: the version as another object than a decoded int, so that a missing `v` is recognised."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", gc=False):
    """Base of all headers."""

    v: Annotated[int, Meta(ge=VERSION, le=VERSION)] = OWN_VERSION
    """Protocol version; required on the wire."""


# ---- all peers -------------------------------------------------------------------------------------------


class Fetch(Message, tag="fetch", frozen=True, kw_only=True):
    """A request for `length` bytes of a payload, sent by its receiver and answered with chunks."""

    request_id: Id
    """Id of the request that the payload belongs to."""
    payload_id: Id
    """Id of the payload."""
    offset: Offset
    """First byte, counted from the start of the payload."""
    length: Annotated[int, Meta(ge=1, le=MAX_FETCH_BYTES)]
    """Number of bytes."""
    chunk_bytes: Annotated[int, Meta(ge=MIN_CHUNK_BYTES, le=MAX_CHUNK_BYTES)] = MAX_CHUNK_BYTES
    """Maximum size of each chunk in bytes."""
    token: Token = b""
    """Token of the last chunk or preview received on this connection."""


class Chunk(Message, tag="chunk", frozen=True, kw_only=True):
    """A part of a payload. Frame: the data."""

    request_id: Id
    """Id of the request that the payload belongs to."""
    payload_id: Id
    """Id of the payload."""
    offset: Offset
    """Position of the data, counted from the start of the payload."""
    token: Token = b""
    """Set by the broker; the receiver confirms the chunk with it."""


# ---- client to broker ------------------------------------------------------------------------------------


class Submit(Message, tag="submit", frozen=True, kw_only=True):
    """A request. Payload: the body (`GenerationRequest` as msgpack), then its input images."""

    request_id: Id
    """Random id, chosen by the client once."""
    model: Name | None = None
    """Name of the model; None for the broker's default model."""
    priority: Priority = 0
    """Priority in the queue; higher values go first."""
    timeout_seconds: Timeout | None = None
    """Seconds from the broker's receipt to the deadline."""
    progress: bool = False
    """Whether the client wants PROGRESS messages."""
    preview: bool = False
    """Whether the client wants previews in PROGRESS messages; implies `progress`."""
    traceparent: Traceparent | None = None
    """Trace and parent span, as in W3C Trace Context."""
    images: Annotated[int, Meta(ge=1, le=MAX_IMAGES_PER_REQUEST)] = 1
    """Number of images: the `num_images` of the body."""
    shape: RequestShape = NO_SHAPE
    """What decides the cost of the request, as in the body; see *Shape*."""
    inline_bytes: InlineBytes = DEFAULT_INLINE_BYTES
    """Maximum size of a RESULT's payload that is sent inline."""
    frame_bytes: FrameSizes = []
    """Sizes of the payload's frames if the payload is fetched; empty if it is inline."""


class Cancel(Message, tag="cancel", frozen=True, kw_only=True):
    """A request to cancel; the answer is an ERROR `cancelled`, or a RESULT that was sent before."""

    request_id: Id
    """Id of the request to cancel."""


class Ack(Message, tag="ack", frozen=True, kw_only=True):
    """The acknowledgement of terminal answers."""

    request_ids: Ids
    """Ids of the requests whose answers have arrived."""
    token: Token = b""
    """Token of the last chunk or preview received on this connection."""


class ClientHeartbeat(Message, tag="heartbeat", frozen=True, kw_only=True):
    """A sign of life of the client."""

    token: Token = b""
    """Token of the last chunk or preview received on this connection."""
    receive_maximum: ReceiveMaximum | None = None
    """Maximum number of unacknowledged answers that the client wants to receive; None for no own maximum."""


class StatsQuery(Message, tag="stats", frozen=True, kw_only=True):
    """A query for the broker's statistics."""

    request_id: Id
    """Random id of the query."""


class Goodbye(Message, tag="goodbye", frozen=True, kw_only=True):
    """The end of a session: a client abandons its unfinished requests; a worker holds no request any more."""


ClientMessage = Submit | Cancel | Ack | ClientHeartbeat | StatsQuery | Goodbye | Fetch | Chunk


# ---- broker to client ------------------------------------------------------------------------------------


class Accepted(Message, tag="accepted", frozen=True, kw_only=True):
    """The confirmation that the broker holds these requests."""

    request_ids: Ids
    """Ids of the accepted requests."""


class Progress(Message, tag="progress", frozen=True, kw_only=True):
    """The progress of a request, from the broker while it is queued, from the worker while it runs.

    Frame: a preview as a small PNG or JPEG, if the client requested previews; or none.
    """

    request_id: Id
    """Id of the request."""
    attempt: Count = 1
    """Number of the running or next attempt; from 1."""
    state: Literal["queued", "running"] = "running"
    """State of the request."""
    step: Count = 0
    """Denoising steps done, of a running request."""
    steps: Count = 0
    """Denoising steps in total, of a running request."""
    place: Count | None = None
    """Requests ahead of a queued request, at most."""
    seconds_to_start: Seconds | None = None
    """Estimated start of a queued request; None while unknown."""
    token: Token = b""
    """Set by the broker if there is a preview; the client confirms it."""


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The description of one image frame of a RESULT."""

    format: Literal["png", "jpeg", "webp"]
    """File format."""
    width: SidePixels
    """Width in pixels."""
    height: SidePixels
    """Height in pixels."""
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)]
    """Seed that the image was generated with."""


class Result(Message, tag="result", frozen=True, kw_only=True):
    """The terminal answer of a request that succeeded. Payload: one encoded image in each frame.

    The worker creates it, and the broker forwards its bytes unchanged.
    """

    request_id: Id
    """Id of the request."""
    attempt: Count = 1
    """Number of the attempt that succeeded; from 1."""
    worker: Name
    """Name of the worker."""
    model: Name
    """Name of the model."""
    images: Annotated[list[ImageInfo], Meta(max_length=MAX_PAYLOAD_FRAMES)]
    """Descriptions of the image frames, in their order."""
    batch_size: Count = 1
    """Number of requests in the batch, this one included."""
    queue_seconds: Seconds = 0.0
    """Seconds from arrival at the worker to the start of the batch."""
    generation_seconds: Seconds = 0.0
    """Seconds from the start of the batch to the finished images."""
    encode_seconds: Seconds = 0.0
    """Seconds spent on encoding the images."""
    parameters: dict[str, ParameterValue] = {}
    """Effective parameters, with the model's defaults filled in."""
    warnings: Annotated[
        list[Annotated[str, Meta(max_length=MAX_WARNING_LENGTH)]], Meta(max_length=MAX_WARNINGS)
    ] = []
    """What the client should know about the images, for people: a truncated prompt, a LoRA that fits in part."""
    payload_id: Id | None = None
    """Id of the payload if it is fetched; another answer to the same request has another one."""
    frame_bytes: FrameSizes = []
    """Sizes of the payload's frames if the payload is fetched; empty if it is inline."""


class Error(Message, tag="error", frozen=True, kw_only=True):
    """The terminal answer of a request that failed; without `request_id`, a report about another message."""

    code: Code
    """Error code."""
    message: Annotated[str, Meta(max_length=MAX_ERROR_MESSAGE_LENGTH)]
    """Description for people."""
    request_id: Id | None = None
    """Id of the request; None if there is none, or it can't be read."""
    attempt: Count = 1
    """Number of the attempt that failed; from 1."""
    retry_after_seconds: Seconds | None = None
    """Seconds to wait before a new request; set for `overloaded`."""


class BrokerHeartbeat(Message, tag="heartbeat", frozen=True, kw_only=True):
    """A sign of life of the broker, with its heartbeat settings."""

    epoch: Id
    """Random id of this run of the broker."""
    session: Count
    """Number of the peer's session; 0 if the broker does not know the worker."""
    beat: Count = 0
    """Sequence number within a worker's session; 0 for clients."""
    interval_seconds: Interval
    """Seconds between two heartbeats."""
    liveness: Annotated[int, Meta(ge=1, le=MAX_LIVENESS)]
    """Silent intervals after which a peer counts as dead."""
    fetch_window_bytes: Annotated[int, Meta(ge=MIN_CHUNK_BYTES, le=MAX_PAYLOAD_BYTES)] = DEFAULT_FETCH_WINDOW_BYTES
    """Maximum number of bytes that the peer may have requested and not received."""
    receive_maximum: ReceiveMaximum | None = None
    """Maximum number of the client's requests that are at workers or unacknowledged; None for workers."""
    number: Count | None = None
    """`number` of the worker's last heartbeat that has arrived; None for clients."""


class Stats(Message, tag="stats", frozen=True, kw_only=True):
    """The answer to a StatsQuery. Payload: `Statistics` as a msgpack map."""

    request_id: Id
    """Id of the query."""
    payload_id: Id | None = None
    """Id of the payload if it is fetched."""
    frame_bytes: FrameSizes = []
    """Sizes of the payload's frames if the payload is fetched; empty if it is inline."""


BrokerToClient = Accepted | Progress | Result | Error | BrokerHeartbeat | Stats | Fetch | Chunk


# ---- worker to broker ------------------------------------------------------------------------------------


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Totals since the worker started."""

    total_requests: Count = 0
    """Requests that ended in a result."""
    total_failed: Count = 0
    """Requests that ended in an error."""
    total_batches: Count = 0
    """Batches; with continuous batching, forwards of the denoiser."""
    total_batched_requests: Count = 0
    """Sum of the batch sizes."""
    total_images: Count = 0
    """Images generated."""
    busy_seconds: Seconds = 0.0
    """Seconds of wall time during which a batch ran."""


class WorkerReport(Message, frozen=True, kw_only=True):
    """The state of a worker, in READY and in each heartbeat. Its ids include those from other brokers."""

    queued: Ids = []
    """Ids of the requests that wait at the worker."""
    running: Ids = []
    """Ids of the requests in the running batch."""
    finished: Ids = []
    """Ids of the answered requests that await RELEASE."""
    stats: WorkerStats = WorkerStats()
    """Totals since the worker started."""
    seconds_per_image: SecondsPerImage | None = None
    """Seconds for one image in a full batch; None while unknown."""
    warm: Models = []
    """Loaded models; empty if all models of READY are loaded."""
    costs: Annotated[dict[Name, CostModel], Meta(max_length=MAX_COST_MODELS)] = {}
    """Measured costs by model; empty if unchanged or unknown."""
    loaded_loras: Annotated[list[Name], Meta(max_length=MAX_LOADED_LORAS)] = []
    """Names of the LoRAs that are loaded."""


class Ready(WorkerReport, tag="ready", frozen=True, kw_only=True):
    """The registration of a worker whose first model is loaded. Frame: the capabilities of its models, or none."""

    worker_id: Id
    """Random id of the worker's process."""
    name: Name
    """Name of the worker, unique among live workers."""
    host: Name
    """Name of the host."""
    gpu_id: Annotated[int, Meta(ge=0, le=MAX_GPU_ID)]
    """Index of the GPU on its host."""
    gpu_uuid: Name | None = None
    """UUID of the GPU or of its MIG instance; None if unknown."""
    device: Name
    """Description of the device, for people."""
    backend: Name
    """Model runtime, for people."""
    models: Annotated[Models, Meta(min_length=1)]
    """Models that the worker serves; the first is its default model."""
    capacity: Annotated[int, Meta(ge=1, le=MAX_IDS_PER_MESSAGE)]
    """Maximum number of images at the worker, running and waiting."""
    max_batch_size: Annotated[int, Meta(ge=1, le=MAX_IDS_PER_MESSAGE)]
    """Maximum number of images in a batch."""
    batching: str = "off"
    """Kind of batching, for people: `off`, `static` or `continuous`."""
    pid: Count = 0
    """Process id on the worker's host; 0 if unknown."""
    http: Address | None = None
    """Address of the worker's `/metrics`; None if it serves none."""
    version: Name | None = None
    """Version of the worker's program, for people; None if unknown."""


class WorkerHeartbeat(WorkerReport, tag="heartbeat", frozen=True, kw_only=True):
    """A sign of life of the worker, with its state."""

    session: Count
    """Session of the registration that the heartbeat belongs to."""
    beat: Count = 0
    """`beat` of the last broker heartbeat on this connection."""
    state: Literal["ready", "draining"] = "ready"
    """Whether the worker accepts work."""
    step_age_seconds: Seconds | None = None
    """Seconds since the last denoising step; None when idle."""
    token: Token = b""
    """Token of the last chunk received on this connection."""
    number: Count = 0
    """Sequence number within the session, from 1; 0 if the worker does not measure its link."""


WorkerMessage = Ready | WorkerHeartbeat | Progress | Result | Error | Goodbye | Fetch | Chunk


# ---- broker to worker ------------------------------------------------------------------------------------


class Work(Message, tag="work", frozen=True, kw_only=True):
    """The dispatch of a request. Payload: that of SUBMIT, unchanged."""

    request_id: Id
    """Id of the request."""
    model: Name | None = None
    """Name of the model; None for the worker's default model."""
    attempt: Count = 1
    """Number of the attempt; from 1."""
    timeout_seconds: Timeout | None = None
    """Seconds left until the deadline; None for no deadline."""
    progress: bool = False
    """Whether the client wants PROGRESS messages."""
    preview: bool = False
    """Whether the client wants previews in PROGRESS messages; implies `progress`."""
    traceparent: Traceparent | None = None
    """Trace and parent span, as in W3C Trace Context."""
    alone: bool = False
    """Whether the request must run alone; see *Death*."""
    images: Annotated[int, Meta(ge=1, le=MAX_IMAGES_PER_REQUEST)] | None = None
    """The `images` of SUBMIT; the `num_images` of the body must not differ."""
    shape: RequestShape = NO_SHAPE
    """The `shape` of SUBMIT; the body must not differ."""
    inline_bytes: InlineBytes = DEFAULT_INLINE_BYTES
    """Maximum size of a RESULT's payload that is sent inline."""
    frame_bytes: FrameSizes = []
    """Sizes of the payload's frames if the payload is fetched; empty if it is inline."""


class Release(Message, tag="release", frozen=True, kw_only=True):
    """An order to forget requests: drop queued ones, stop running ones, free the answers of finished ones."""

    request_ids: Ids
    """Ids of the requests to forget."""


class Resend(Message, tag="resend", frozen=True, kw_only=True):
    """A broker's order to a worker: send it the answers of these requests, now or as soon as they exist."""

    request_ids: Ids
    """Ids of the requests whose answers to send."""


class Drain(Message, tag="drain", frozen=True, kw_only=True):
    """An order to accept no more work, return the queued requests, finish the running ones and leave."""


BrokerToWorker = Work | Release | Resend | BrokerHeartbeat | Drain | Error | Fetch | Chunk

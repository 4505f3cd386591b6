"""The header of every message, one struct each; `docs/protocol.md` says who sends what, and when.

A header is a msgpack map with the keys `type` (the struct's tag), `v` (the protocol version) and the struct's
fields. Unknown keys are ignored, so that fields can be added; unknown types and wrong values are errors.
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from imagegen_protocol.limits import (
    ID_BYTES,
    MAX_COUNT,
    MAX_DURATION_SECONDS,
    MAX_FLOAT,
    MAX_GPU_ID,
    MAX_HEARTBEAT_INTERVAL_SECONDS,
    MAX_IDS_PER_MESSAGE,
    MAX_IMAGES_PER_REQUEST,
    MAX_INTEGER,
    MAX_LIVENESS,
    MAX_MODELS,
    MAX_NAME_LENGTH,
    MAX_SECONDS_PER_IMAGE,
    MAX_SEED,
    MAX_SIDE_PIXELS,
    MAX_TIMEOUT_SECONDS,
    MIN_HEARTBEAT_INTERVAL_SECONDS,
    MIN_INTEGER,
    MIN_SECONDS_PER_IMAGE,
    VERSION,
)

Id = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Ids = Annotated[list[Id], Meta(max_length=MAX_IDS_PER_MESSAGE)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
Models = Annotated[list[Name], Meta(max_length=MAX_MODELS)]
Address = Annotated[str, Meta(max_length=300, pattern=r"^[^\s/]+:[0-9]{1,5}\Z")]
"""HOST:PORT, an IPv6 host in brackets."""
# A lower bound refuses NaN, too: msgspec checks that a value is within the range, not that it is not outside.
Seconds = Annotated[float, Meta(ge=0, le=MAX_DURATION_SECONDS)]
SecondsPerImage = Annotated[float, Meta(ge=MIN_SECONDS_PER_IMAGE, le=MAX_SECONDS_PER_IMAGE)]
Interval = Annotated[float, Meta(ge=MIN_HEARTBEAT_INTERVAL_SECONDS, le=MAX_HEARTBEAT_INTERVAL_SECONDS)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
SidePixels = Annotated[int, Meta(ge=0, le=MAX_SIDE_PIXELS)]
Timeout = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_SECONDS)]
Traceparent = Annotated[str, Meta(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")]
"""Where a request stands in a trace, as W3C's Trace Context writes it."""
Priority = Annotated[int, Meta(ge=-100, le=100)]

Integer = Annotated[int, Meta(ge=MIN_INTEGER, le=MAX_INTEGER)]
Finite = Annotated[float, Meta(ge=-MAX_FLOAT, le=MAX_FLOAT)]
Plain = str | Integer | Finite | bool | None
Parameter = Plain | list[dict[str, str | Finite]] | dict[str, Plain | list[Plain] | dict[str, Plain]]
"""The value of one parameter in a RESULT; a list has one map for each LoRA, a map is `extra`."""


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base of all headers."""

    v: Annotated[int, Meta(ge=VERSION, le=VERSION)] = VERSION


# ---- client to broker ------------------------------------------------------------------------------------


class Submit(Message, tag="submit", frozen=True, kw_only=True):
    """A request; frames: the body (`GenerationRequest` as msgpack), then input images, if any."""

    request_id: Id
    model: Name | None = None
    priority: Priority = 0
    timeout_seconds: Timeout | None = None
    progress: bool = False
    preview: bool = False
    """Send small pictures on the way; implies `progress`."""
    traceparent: Traceparent | None = None
    images: Annotated[int, Meta(ge=1, le=MAX_IMAGES_PER_REQUEST)] = 1
    """How many it asks for: dispatch counts them."""


class Cancel(Message, tag="cancel", frozen=True, kw_only=True):
    """Give a request up; the answer is an ERROR `cancelled`, or the RESULT that was on its way."""

    request_id: Id


class Ack(Message, tag="ack", frozen=True, kw_only=True):
    """The terminal answers to these requests have arrived."""

    request_ids: Ids


class ClientHeartbeat(Message, tag="heartbeat", frozen=True, kw_only=True):
    """The client lives."""


class StatsQuery(Message, tag="stats", frozen=True, kw_only=True):
    """Ask for the broker's statistics."""


class Goodbye(Message, tag="goodbye", frozen=True, kw_only=True):
    """The peer leaves: a client gives up what is unfinished, a worker holds nothing more."""


ClientMessage = Submit | Cancel | Ack | ClientHeartbeat | StatsQuery | Goodbye


# ---- broker to client ------------------------------------------------------------------------------------


class Accepted(Message, tag="accepted", frozen=True, kw_only=True):
    """The broker holds these requests."""

    request_ids: Ids


class Progress(Message, tag="progress", frozen=True, kw_only=True):
    """How far a request is: queued at the broker, or running with `step` of `steps` denoising steps done.

    Made by the broker, or by the worker. Frame, where a preview was asked for: a small PNG or JPEG, or none.
    """

    request_id: Id
    attempt: Count = 1
    state: Literal["queued", "running"] = "running"
    step: Count = 0
    steps: Count = 0
    place: Count | None = None
    """Queued: how many go before it, at most."""
    seconds_to_start: Seconds | None = None
    """Queued: an estimate; None while unknown."""


class ImageInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What one image frame of a RESULT holds; sizes in pixels."""

    format: str
    width: SidePixels
    height: SidePixels
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)]


class Result(Message, tag="result", frozen=True, kw_only=True):
    """The terminal answer, good; frames: one encoded image each. Made by the worker, passed on as it is."""

    request_id: Id
    attempt: Count = 1
    worker: str
    model: str
    images: list[ImageInfo]
    batch_size: Count = 1
    """Requests that shared the batch with this one, itself included."""
    queue_seconds: Seconds = 0.0
    """From arrival at the worker to the start of its batch."""
    generation_seconds: Seconds = 0.0
    encode_seconds: Seconds = 0.0
    parameters: dict[str, Parameter] = {}
    """What the images were really made with, the model's defaults filled in."""


class Error(Message, tag="error", frozen=True, kw_only=True):
    """The terminal answer, bad (or, without `request_id`, a message that could not be understood)."""

    code: str
    message: str
    request_id: Id | None = None
    attempt: Count = 1
    retry_after_seconds: Seconds | None = None


class BrokerHeartbeat(Message, tag="heartbeat", frozen=True, kw_only=True):
    """The broker lives. `session` 0 says that it does not know the peer."""

    epoch: Id
    session: Count
    beat: Count = 0
    interval_seconds: Interval
    liveness: Annotated[int, Meta(ge=1, le=MAX_LIVENESS)]


class Stats(Message, tag="stats", frozen=True, kw_only=True):
    """The answer to a StatsQuery; frame: what HTTP `/stats` has in JSON, as a msgpack map."""


BrokerToClient = Accepted | Progress | Result | Error | BrokerHeartbeat | Stats


# ---- worker to broker ------------------------------------------------------------------------------------


class WorkerStats(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the worker started; seconds are of wall time."""

    total_requests: Count = 0
    """Requests that ended in a result."""
    total_failed: Count = 0
    total_batches: Count = 0
    total_batched_requests: Count = 0
    """The sum of batch sizes; over `total_batches` it gives the average."""
    total_images: Count = 0
    busy_seconds: Seconds = 0.0


class Holding(Message, frozen=True, kw_only=True):
    """What a worker holds: ids waiting, in the running batch, and answered but not released."""

    queued: Ids = []
    running: Ids = []
    finished: Ids = []
    stats: WorkerStats = WorkerStats()
    seconds_per_image: SecondsPerImage | None = None
    """Measured or modelled time of one image in a full batch; None while unknown."""
    warm: Models = []
    """The models that are loaded now; none: all that READY names."""


class Ready(Holding, tag="ready", frozen=True, kw_only=True):
    """A warm worker asks to be registered."""

    worker_id: Id
    name: Name
    host: Name
    gpu_id: Annotated[int, Meta(ge=0, le=MAX_GPU_ID)]
    """The card's index on its host."""
    gpu_uuid: Name | None = None
    """The card's own, or that of its MIG instance."""
    device: Name
    backend: Name
    models: Annotated[Models, Meta(min_length=1)]
    """The first is the worker's default model."""
    capacity: Annotated[int, Meta(ge=1, le=100_000)]
    """Requests that the worker takes at a time, running and waiting."""
    max_batch_size: Annotated[int, Meta(ge=1, le=100_000)]
    batching: str = "off"
    pid: Count = 0
    http: Address | None = None
    """Where its `/metrics` is; None: nowhere."""
    version: Name | None = None
    """Of the worker's program; None: not told."""


class WorkerHeartbeat(Holding, tag="heartbeat", frozen=True, kw_only=True):
    """The worker lives; `beat` is that of the last broker heartbeat it saw on this connection."""

    session: Count
    beat: Count = 0
    state: Literal["ready", "draining"] = "ready"
    step_age_seconds: Seconds | None = None
    """Age of the running batch's last step; None when idle."""


WorkerMessage = Ready | WorkerHeartbeat | Progress | Result | Error | Goodbye


# ---- broker to worker ------------------------------------------------------------------------------------


class Work(Message, tag="work", frozen=True, kw_only=True):
    """Make this; frames as in SUBMIT, uncopied."""

    request_id: Id
    model: Name | None = None
    attempt: Count = 1
    timeout_seconds: Timeout | None = None
    progress: bool = False
    preview: bool = False
    traceparent: Traceparent | None = None
    alone: bool = False
    """It may be what took workers down: run it when nothing else runs, and nothing beside it."""


class Release(Message, tag="release", frozen=True, kw_only=True):
    """Forget these ids, whatever their state: drop the queued, stop the running, free the finished."""

    request_ids: Ids


class Resend(Message, tag="resend", frozen=True, kw_only=True):
    """Send the answers to these requests to this broker: now if they are there, else once they are."""

    request_ids: Ids


class Drain(Message, tag="drain", frozen=True, kw_only=True):
    """Take no more work, give back what has not begun, finish the rest, say GOODBYE."""


BrokerToWorker = Work | Release | Resend | BrokerHeartbeat | Drain | Error

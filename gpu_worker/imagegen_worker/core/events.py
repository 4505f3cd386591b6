"""Events that the worker's core handles, commands to the engine, and the actions that the core returns.

A request on its way through the engine is a job with a number of its own: a request id may be released and sent
again, and events of the first job must not be applied to the second one.
"""

from dataclasses import dataclass, field
from typing import Any

from imagegen_protocol import GenerationRequest, ProtocolError
from imagegen_protocol.costs import CostModel
from imagegen_protocol.messages import BrokerToWorker, ImageInfo, WorkerMessage
from imagegen_protocol.transfers import Buffer
from imagegen_worker.core.model import Model, ResolvedRequest

# ---- events of the shell; `broker` is the index of a configured broker ----------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A broker sent a message; `frames` are the frames after the header."""

    broker: int
    message: BrokerToWorker
    frames: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Malformed:
    """A broker sent frames that are not a valid message."""

    broker: int
    error: ProtocolError


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """The worker must accept no more requests, finish the running ones and exit."""

    reason: str


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed; deadlines may have been reached."""


# ---- events of the engine --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class EngineReady:
    """The engine has started, with these models loaded. `seconds_per_image` is None while unknown.

    `served` has the names of all served models, the default first; empty: those of the loaded ones.
    """

    models: tuple[Model, ...]
    device: str
    seconds_per_image: float | None = None
    served: tuple[str, ...] = ()
    load_seconds: float | None = None
    """Seconds that the first model took to load, its first images included; None while unknown."""


@dataclass(frozen=True, slots=True)
class ModelLoading:
    """The device fetches or loads a model. `loaded`: names of the models that are loaded or being loaded."""

    name: str
    loaded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """A model was loaded. `loaded`: names of all loaded models."""

    model: Model
    loaded: tuple[str, ...]
    seconds: float | None = None
    """Seconds that it took; None if unknown."""


@dataclass(frozen=True, slots=True)
class ModelLoadFailed:
    """A model could not be loaded; the engine has discarded its jobs. `loaded`: names of all loaded models."""

    name: str
    message: str
    loaded: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """These jobs have started, as one batch."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stepped:
    """These jobs have completed `step` of `steps` denoising steps."""

    numbers: tuple[int, ...]
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """An encoded preview of the first image of a job."""

    number: int
    image: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The encoded images of a job. Seconds of wall time; `batch_size` in requests."""

    number: int
    images: tuple[bytes, ...]
    infos: tuple[ImageInfo, ...]
    batch_size: int
    queue_seconds: float
    generation_seconds: float
    encode_seconds: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A job failed; `code` is an error code of the protocol."""

    number: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDone:
    """A call of the backend succeeded: `requests` shared it, and it produced `images` in `seconds`.

    With continuous batching a call is one forward of the denoiser: `requests` counts the images that shared it,
    `images` those that were completed since the last forward. `rows` is its batch dimension, `beside_seconds` the
    time of text encoders and decoders since the last forward, and `fallbacks` the reasons of the forwards since
    then that could not be shared. `waits` has the seconds from arrival to the first forward for each job that had
    its first one. `numbers` are the jobs that shared the call; some of them may have ended already.
    """

    requests: int
    images: int
    steps: int
    seconds: float
    seconds_per_image: float | None
    rows: int = 0
    beside_seconds: float = 0.0
    fallbacks: tuple[str, ...] = ()
    waits: tuple[float, ...] = ()
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class CostsMeasured:
    """A request of this model has all of its images, and took `seconds` of the device.

    `predicted`: the seconds that the costs predicted when it started, given the forwards that it shared; None if
    nothing was measured by then. `costs` include this request.
    """

    model: str
    costs: CostModel
    seconds: float
    predicted: float | None = None


@dataclass(frozen=True, slots=True)
class CallFailed:
    """A call of the backend raised after `seconds`.

    `split`: it ran out of memory, and its rows are retried in halves. `stopped`: all its jobs were cancelled.
    """

    images: int
    seconds: float
    split: bool
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """The device has ended a batch; nothing runs until the next `Started`."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The input images of a job are decoded, and its request is resolved."""

    number: int
    request: ResolvedRequest


ModelEvent = EngineReady | ModelLoading | ModelLoaded | ModelLoadFailed
JobEvent = Decoded | Started | Stepped | Previewed | Finished | Failed
EngineEvent = ModelEvent | JobEvent | CallDone | CallFailed | CostsMeasured | Idle
Event = Received | Malformed | DrainRequested | Tick | EngineEvent

# ---- commands to the engine ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """Generate the images of a request. `arrived` is the monotonic time of its arrival, in seconds.

    `preview`: send previews of its first image, as `Previewed`.
    """

    number: int
    request: ResolvedRequest
    arrived: float
    preview: bool = False


@dataclass(frozen=True, slots=True)
class LoadModel:
    """Load a model when possible: a request needs its capabilities before it can be parsed."""

    name: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Cancel a job."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the engine once its batch is done."""


Command = Job | LoadModel | Cancel | Stop

# ---- actions ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decode:
    """Decode the input images of a job, one frame for each of the request's `inputs`; `Decoded` is the reply."""

    number: int
    request: GenerationRequest
    model: Model
    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to a broker; it may be lost."""

    broker: int
    message: WorkerMessage
    frames: tuple[Buffer, ...] = ()


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Open a new connection to a broker: the present one is silent."""

    broker: int


@dataclass(frozen=True, slots=True)
class Exit:
    """End the process with this status."""

    status: int


@dataclass(frozen=True, slots=True)
class LogEvent:
    """Write a log line; `level` as in `logging`. `broker`: index of the broker whose endpoint to add."""

    level: int
    text: str
    fields: dict[str, Any] = field(default_factory=dict)
    broker: int | None = None


Action = Send | Reconnect | Decode | Job | LoadModel | Cancel | Exit | LogEvent

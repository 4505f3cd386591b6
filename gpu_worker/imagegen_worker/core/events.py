"""What the core is told, and what it asks for.

Jobs go by a number of their own on the way to the engine and back: an id may be released and come again, and an
event about the first must not be taken for one about the second.
"""

from dataclasses import dataclass, field
from typing import Any

from imagegen_protocol import GenerationRequest, ProtocolError
from imagegen_protocol.messages import BrokerToWorker, ImageInfo, WorkerMessage
from imagegen_worker.core.model import Model, ResolvedRequest

# ---- events: from the sockets ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Received:
    """A message came from the broker on this link; `frames` are those behind the header."""

    link: int
    message: BrokerToWorker
    frames: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Malformed:
    """Something that is no message came from the broker on this link."""

    link: int
    error: ProtocolError


@dataclass(frozen=True, slots=True)
class DrainRequested:
    """Take no more, finish what runs, leave."""

    reason: str


# ---- events: from the engine -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Warm:
    """The worker can begin: these models are loaded. `seconds_per_image` is None while unknown.

    `served` has the names of all that it serves, the default first; empty: those of the loaded ones.
    """

    models: tuple[Model, ...]
    device: str
    seconds_per_image: float | None = None
    served: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loading:
    """A model that is fetched or loaded takes the device up. `warm`: those that are loaded, or about to be."""

    name: str
    warm: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model was loaded; `warm` are all that are now."""

    model: Model
    warm: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LoadFailed:
    """A model can't be loaded, and its jobs are forgotten; `warm` are those that are loaded."""

    name: str
    message: str
    warm: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Started:
    """These jobs have begun, as one batch."""

    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stepped:
    """These jobs have made `step` of `steps` denoising steps."""

    numbers: tuple[int, ...]
    step: int
    steps: int


@dataclass(frozen=True, slots=True)
class Previewed:
    """A small picture, encoded, of what the first image of a job looks like so far."""

    number: int
    image: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The images of a job, encoded. Seconds of wall time; `batch_size` in requests."""

    number: int
    images: tuple[bytes, ...]
    infos: tuple[ImageInfo, ...]
    batch_size: int
    queue_seconds: float
    generation_seconds: float
    encode_seconds: float


@dataclass(frozen=True, slots=True)
class Failed:
    """A job ended in an error; `code` is one of the wire's."""

    number: int
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDone:
    """One call of the backend went well: `requests` shared it, `images` came out, in `seconds`.

    With continuous batching a call is one forward of the denoiser: `requests` are the images that shared it,
    `images` those that came out since the last one. `rows` is its batch dimension, `beside_seconds` the time of
    text encoders and decoders since the last one, and `fallbacks` says for each forward since then that could not
    be shared why. `waits` has, for each job that came to its first forward, the seconds since its arrival.
    `numbers` are the jobs whose images shared it; it may be told of after the end of some of them.
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
class CallFailed:
    """One call of the backend raised after `seconds`.

    `split`: it was out of memory, and its rows are tried again in halves. `stopped`: nobody wanted the rest.
    """

    images: int
    seconds: float
    split: bool
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class Idle:
    """The device has ended a batch; nothing runs on it until the next `Started`."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """The images of a job are ready, and nothing of it is left open any more."""

    number: int
    request: ResolvedRequest


ModelEvent = Warm | Loading | Loaded | LoadFailed
JobEvent = Decoded | Started | Stepped | Previewed | Finished | Failed
EngineEvent = ModelEvent | JobEvent | CallDone | CallFailed | Idle
Event = Received | Malformed | DrainRequested | EngineEvent

# ---- commands to the engine --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Job:
    """Make this. `arrived` is the time of its receipt on the monotonic clock, in seconds.

    `preview`: show what the first image looks like on the way, as `Previewed`.
    """

    number: int
    request: ResolvedRequest
    arrived: float
    preview: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """Have this model loaded when it may be: a request waits for it of which nothing more is known before."""

    name: str


@dataclass(frozen=True, slots=True)
class Cancel:
    """Nobody wants this job any more."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End the engine once its batch is done."""


Command = Job | Load | Cancel | Stop

# ---- actions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Decode:
    """Make the images of a job ready: one frame for each of the request's `inputs`; answered by `Decoded`."""

    number: int
    request: GenerationRequest
    model: Model
    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Send:
    """Send a message to the broker on this link; losing it is allowed."""

    link: int
    message: WorkerMessage
    frames: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Redial:
    """Open a new connection to the broker on this link: the present one is silent."""

    link: int


@dataclass(frozen=True, slots=True)
class Exit:
    """All is said and done: end the process with this status."""

    status: int


@dataclass(frozen=True, slots=True)
class Note:
    """A line for the log; `level` as in `logging`."""

    level: int
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


Action = Send | Redial | Decode | Job | Load | Cancel | Exit | Note

"""Limits of the protocol, and the defaults of the settings that the broker announces."""

from sys import float_info

VERSION = 2
"""Protocol version in every header."""

ID_BYTES = 16
"""Length of a request id, a worker id or an epoch."""

MAX_HEADER_BYTES = 128 * 1024
"""Maximum size of a header: READY with three lists of ids and two of the names of models is about this long."""
MAX_BODY_BYTES = 256 * 1024
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""Maximum size of an image."""
MAX_PAYLOAD_FRAMES = 65
"""Maximum frames of a payload: the body and 64 images."""
MAX_FRAMES = 1 + MAX_PAYLOAD_FRAMES
"""Maximum frames of a message: the header and an inline payload."""
MAX_PAYLOAD_BYTES = 1024 * 1024 * 1024
"""Maximum size of a payload, all frames together."""

MAX_INLINE_BYTES = 64 * 1024
"""Maximum size of a payload that is sent inline, in the frames after its header."""
DEFAULT_INLINE_BYTES = 16 * 1024
"""Size up to which a payload is sent inline unless its receiver set another limit. At 9 kB/s it takes 1.8 s, less
than the default time without a message after which a peer counts as dead."""
MIN_CHUNK_BYTES = 4 * 1024
MAX_CHUNK_BYTES = 256 * 1024
"""Maximum size of the data in one CHUNK. Sockets disconnect a peer that sends a longer frame (`MAXMSGSIZE`)."""
MAX_FETCH_BYTES = 16 * 1024 * 1024
"""Maximum number of bytes that one FETCH requests."""
DEFAULT_FETCH_WINDOW_BYTES = 4 * 1024 * 1024
"""Default maximum number of bytes that one peer has requested and not received."""
MAX_TOKEN_BYTES = 16
"""Maximum length of the token with which a peer confirms the last chunk that it has received."""

MAX_PREVIEW_BYTES = 16 * 1024
MAX_PREVIEW_SIDE_PIXELS = 64

MAX_IDS_PER_MESSAGE = 1024
"""Maximum ids in one list; a longer list is sent as several messages."""

MAX_MODELS = 256
"""Maximum models of one worker."""

MAX_COST_MODELS = 64
"""Maximum models whose measured costs one report contains."""

MAX_LOADED_LORAS = 64
"""Maximum loaded LoRAs that one report lists."""

MAX_CHOICES = 128
"""Maximum schedulers, LoRAs or other choices that one model reports."""

MAX_PARAMETERS = 128
"""Maximum parameters that one model reports."""

MAX_CAPABILITIES_BYTES = 16 * 1024
"""Maximum size of the capabilities in one READY; a worker with many models sends several."""

MAX_REASON_LENGTH = 256
"""Maximum characters of the reason why requests of a model do not share forwards."""

MAX_NAME_LENGTH = 128
MAX_CODE_LENGTH = 64
MAX_ERROR_MESSAGE_LENGTH = 12_000
"""Maximum characters of an error's text. The longest are lists of the models that are served."""
MIN_PRIORITY = -100
MAX_PRIORITY = 100
MAX_WARNINGS = 16
"""Maximum warnings in one RESULT."""
MAX_WARNING_LENGTH = 512
MAX_PROMPT_LENGTH = 10_000
MAX_SEED = 2**63 - 1
MAX_JSON_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader reads exactly."""
MAX_RANDOM_SEED = 2**52 - 1
"""Largest random seed. The seeds of further images and prompts count up from it and stay below `MAX_JSON_INTEGER`,
so that readers that store numbers as doubles (JavaScript, jq before 1.7) read them exactly."""
MIN_SIDE_PIXELS = 8
MAX_SIDE_PIXELS = 8192
MAX_STEPS = 1000
MAX_IMAGES_PER_REQUEST = 16
MAX_REFERENCE_IMAGES = 10
"""Maximum reference images of one request; a model may accept fewer."""
MAX_INPUTS = 2 + MAX_REFERENCE_IMAGES
"""Maximum input images of one request."""
MAX_GUIDANCE_SCALE = 100.0
MAX_LORAS = 8
MAX_LORA_SCALE = 10.0
MAX_EXTRA = 32
"""Maximum entries of `extra`."""
MAX_EXTRA_ITEMS = 1000
"""Maximum items of one list or map in `extra`; the same as `MAX_STEPS`."""
MAX_EXTRA_BYTES = 16 * 1024
"""Maximum size of `extra` as msgpack; the header of RESULT repeats it."""
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600.0

MAX_COUNT = 2**40
"""Maximum count in a message. The sum over 8,192 workers is still exact in JSON (2**53)."""
MAX_GPU_ID = 65_535
MAX_DURATION_SECONDS = 1e9
"""Maximum duration in a message, about 31 years."""
MIN_SECONDS_PER_IMAGE = 1e-6
MAX_SECONDS_PER_IMAGE = 1e6
"""Limits of a worker's measured speed. The broker's scheduling divides by it."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
"""Limits of integers without a narrower range."""
MAX_FLOAT = float_info.max
"""Largest finite float; a range that ends here excludes NaN and the infinities."""

MIN_HEARTBEAT_INTERVAL_SECONDS = 0.01
MAX_HEARTBEAT_INTERVAL_SECONDS = 3600.0
MAX_LIVENESS = 1000
DEFAULT_HEARTBEAT_INTERVAL_SECONDS = 1.0
DEFAULT_LIVENESS = 3
"""Silent heartbeat intervals after which a peer counts as dead."""

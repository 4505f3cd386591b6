"""Numbers that both ends of the wire must agree on, and the defaults of those that the broker announces."""

from sys import float_info

VERSION = 1
"""The protocol version that every header carries."""

ID_BYTES = 16
"""Length of a request id, a worker id and an epoch."""

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 256 * 1024
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""The longest image frame; longer messages are cut off by the socket itself (`MAXMSGSIZE`)."""
MAX_FRAMES = 66
"""Header, body and at most 64 images."""

MAX_PREVIEW_BYTES = 64 * 1024
MAX_PREVIEW_SIDE_PIXELS = 64

MAX_IDS_PER_MESSAGE = 1024
"""Ids in one ACK, ACCEPTED, RELEASE or RESEND; a longer list is sent as several messages."""

MAX_MODELS = 256
"""Models of one worker."""

MAX_CHOICES = 128
"""Schedulers, or LoRAs, that are told of one model."""

MAX_PARAMETERS = 128
"""Parameters that one model reports."""

MAX_NAME_LENGTH = 128
MAX_PROMPT_LENGTH = 10_000
MAX_SEED = 2**63 - 1
MAX_JSON_INTEGER = 2**53 - 1
"""Largest integer that every JSON reader reads exactly."""
MAX_RANDOM_SEED = 2**52 - 1
"""Largest seed that is chosen at random. The seeds of further images and prompts count up from it and stay below
`MAX_JSON_INTEGER`, so that readers that store numbers as doubles (JavaScript, jq before 1.7) read them exactly."""
MIN_SIDE_PIXELS = 8
MAX_SIDE_PIXELS = 8192
MAX_STEPS = 1000
MAX_IMAGES_PER_REQUEST = 16
MAX_INPUTS = 2
"""Images that come with one request."""
MAX_GUIDANCE_SCALE = 100.0
MAX_LORAS = 8
MAX_LORA_SCALE = 10.0
MAX_EXTRA = 32
"""Entries of `extra`."""
MAX_EXTRA_ITEMS = 1000
"""Items of one list or map in `extra`: as many as there may be steps."""
MAX_EXTRA_BYTES = 16 * 1024
"""`extra` as msgpack: RESULT tells it again, in a header."""
MAX_TIMEOUT_SECONDS = 7 * 24 * 3600.0

MAX_COUNT = 2**40
"""The highest number of things in a message. The sum over 8,192 workers is still exact in JSON (2**53)."""
MAX_GPU_ID = 65_535
MAX_DURATION_SECONDS = 1e9
"""The longest duration in a message, some 31 years."""
MIN_SECONDS_PER_IMAGE = 1e-6
MAX_SECONDS_PER_IMAGE = 1e6
"""Bounds of a worker's measured speed. The broker's scheduling divides by it."""
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1
"""Bounds of integers that have no narrower range."""
MAX_FLOAT = float_info.max
"""The highest finite float; a range that ends here refuses NaN and the infinities."""

MIN_HEARTBEAT_INTERVAL_SECONDS = 0.01
MAX_HEARTBEAT_INTERVAL_SECONDS = 3600.0
MAX_LIVENESS = 1000
DEFAULT_HEARTBEAT_INTERVAL_SECONDS = 1.0
DEFAULT_LIVENESS = 3
"""Silent heartbeat intervals after which a peer counts as dead."""

"""Numbers that both ends of the wire must agree on, and the defaults of those that the broker announces."""

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

DEFAULT_HEARTBEAT_INTERVAL_SECONDS = 1.0
DEFAULT_LIVENESS = 3
"""Silent heartbeat intervals after which a peer counts as dead."""

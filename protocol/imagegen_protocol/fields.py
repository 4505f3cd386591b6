"""Types of the scalar fields of messages, with their ranges."""

from typing import Annotated

from msgspec import Meta

from imagegen_protocol.limits import (
    ID_BYTES,
    MAX_CODE_LENGTH,
    MAX_COUNT,
    MAX_DURATION_SECONDS,
    MAX_FLOAT,
    MAX_FRAME_BYTES,
    MAX_HEARTBEAT_INTERVAL_SECONDS,
    MAX_IDS_PER_MESSAGE,
    MAX_INLINE_BYTES,
    MAX_INTEGER,
    MAX_MODELS,
    MAX_NAME_LENGTH,
    MAX_PAYLOAD_BYTES,
    MAX_PAYLOAD_FRAMES,
    MAX_PRIORITY,
    MAX_SECONDS_PER_IMAGE,
    MAX_SIDE_PIXELS,
    MAX_TIMEOUT_SECONDS,
    MAX_TOKEN_BYTES,
    MIN_HEARTBEAT_INTERVAL_SECONDS,
    MIN_INTEGER,
    MIN_PRIORITY,
    MIN_SECONDS_PER_IMAGE,
)

Id = Annotated[bytes, Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
Ids = Annotated[list[Id], Meta(max_length=MAX_IDS_PER_MESSAGE)]
Name = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_LENGTH, pattern=r"^[^\x00-\x1f\x7f]+\Z")]
Code = Annotated[str, Meta(max_length=MAX_CODE_LENGTH, pattern=r"^[a-z][a-z0-9_]*\Z")]
Models = Annotated[list[Name], Meta(max_length=MAX_MODELS)]
Address = Annotated[str, Meta(max_length=300, pattern=r"^[^\s/]+:[0-9]{1,5}\Z")]
"""HOST:PORT; an IPv6 host is in brackets."""
# A lower bound rejects NaN, too: msgspec checks that a value is within the range, not that it is not outside.
Seconds = Annotated[float, Meta(ge=0, le=MAX_DURATION_SECONDS)]
SecondsPerImage = Annotated[float, Meta(ge=MIN_SECONDS_PER_IMAGE, le=MAX_SECONDS_PER_IMAGE)]
Interval = Annotated[float, Meta(ge=MIN_HEARTBEAT_INTERVAL_SECONDS, le=MAX_HEARTBEAT_INTERVAL_SECONDS)]
Count = Annotated[int, Meta(ge=0, le=MAX_COUNT)]
SidePixels = Annotated[int, Meta(ge=0, le=MAX_SIDE_PIXELS)]
Timeout = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_SECONDS)]
Traceparent = Annotated[str, Meta(pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}\Z")]
"""Trace and parent span of a request, in the format of W3C Trace Context."""
FrameSizes = Annotated[list[Annotated[int, Meta(ge=0, le=MAX_FRAME_BYTES)]], Meta(max_length=MAX_PAYLOAD_FRAMES)]
"""The sizes in bytes of the frames of a payload that is fetched in chunks; empty if the payload is inline."""
InlineBytes = Annotated[int, Meta(ge=0, le=MAX_INLINE_BYTES)]
Offset = Annotated[int, Meta(ge=0, le=MAX_PAYLOAD_BYTES)]
Token = Annotated[bytes, Meta(max_length=MAX_TOKEN_BYTES)]
"""Names the last chunk or preview that a peer has received."""
ReceiveMaximum = Annotated[int, Meta(ge=1, le=MAX_COUNT)]
Priority = Annotated[int, Meta(ge=MIN_PRIORITY, le=MAX_PRIORITY)]

Integer = Annotated[int, Meta(ge=MIN_INTEGER, le=MAX_INTEGER)]
Finite = Annotated[float, Meta(ge=-MAX_FLOAT, le=MAX_FLOAT)]
Scalar = str | Integer | Finite | bool | None
ParameterValue = Scalar | list[dict[str, str | Finite]] | dict[str, Scalar | list[Scalar] | dict[str, Scalar]]
"""The value of one parameter in a RESULT; `loras` is a list with one map for each LoRA, `extra` is a map."""

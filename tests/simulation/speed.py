"""Speeds of simulated links, and sizes of messages on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

HEADER_BYTES = 120
"""Estimated size of a header without its ids, with the framing of ZeroMQ and TCP."""
ID_BYTES = 18
_ID_LISTS = ("request_ids", "queued", "running", "finished")


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of a link: bytes per second in each direction, and the latency in seconds."""

    up: float = inf
    """Bytes per second to the broker."""
    down: float = inf
    """Bytes per second from the broker."""
    latency: float = 0.0

    @property
    def is_slow(self) -> bool:
        """Whether the speed of the link is limited."""
        return self != FAST


FAST = Speed()


def payload_bytes(frames: Sequence[Any]) -> int:
    """Return the bytes of the frames after a header."""
    return sum(map(len, frames))


def wire_bytes(message: Any, frames: Sequence[Any]) -> int:
    """Return the estimated size of a message."""
    ids = sum(len(getattr(message, name, ())) for name in _ID_LISTS)
    return HEADER_BYTES + ID_BYTES * ids + payload_bytes(frames)

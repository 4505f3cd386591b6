"""The payload bytes that a process has requested and received, recorded independently of its core."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagegen_protocol.messages import Chunk, Fetch
from tests.simulation import invariants
from tests.simulation.fleet_record import INTERVAL, LIVENESS, SKEW
from tests.simulation.speed import payload_bytes


@dataclass(slots=True)
class Part:
    """The received part of a payload."""

    payload_id: bytes
    connection: Any
    received: int = 0
    requested: int = 0
    """Offset up to which bytes were requested on the connection."""
    active_at: float = 0.0
    """Time of the last chunk, or of the FETCH for the first outstanding bytes."""


class Receiving:
    """The payloads that a process receives, by request id."""

    def __init__(self, owner: Any) -> None:
        self._owner = owner
        self._parts: dict[bytes, Part] = {}

    def on_fetch(self, connection: Any, fetch: Fetch) -> None:
        """Record and check a FETCH that is sent on a connection."""
        part = self._parts.get(fetch.request_id)
        if part is None or part.payload_id != fetch.payload_id:
            # A greedy process sent this FETCH, not its core.
            received = fetch.offset if part is None else 0
            part = self._parts[fetch.request_id] = Part(fetch.payload_id, connection, received)
        invariants.on_fetch(self._owner, fetch, part.received)
        if part.requested <= part.received or fetch.offset == part.received:
            part.active_at = self._owner.world.now
        part.connection, part.requested = connection, fetch.offset + fetch.length
        invariants.on_fetch_sent(self._owner, fetch, self.outstanding(connection))

    def on_chunk(self, connection: Any, chunk: Chunk, frames: Sequence[Any]) -> None:
        """Record a CHUNK that is read from a connection."""
        part = self._parts.get(chunk.request_id)
        if part is None or part.connection != connection:
            return  # it was requested on a connection that the process has closed
        if (part.payload_id, part.received) == (chunk.payload_id, chunk.offset):
            part.received += payload_bytes(frames)
            part.active_at = self._owner.world.now

    def on_header(self, request_id: bytes, payload_id: bytes | None) -> None:
        """Discard the payload of a request if a header announces another one."""
        part = self._parts.get(request_id)
        if part is not None and part.payload_id != payload_id:
            del self._parts[request_id]

    def pause(self, request_ids: Sequence[bytes]) -> None:
        """Reset the requested bytes of payloads that the sender no longer has; received parts are kept."""
        for request_id in request_ids:
            if (part := self._parts.get(request_id)) is not None:
                part.requested = part.received

    def outstanding(self, connection: Any) -> int:
        """Return the number of bytes requested on a connection that may still arrive."""
        since = self._owner.world.now - LIVENESS * INTERVAL / (1 + SKEW)
        return sum(
            max(0, part.requested - part.received)
            for part in self._parts.values()
            if part.connection == connection and part.active_at > since
        )

    def restart(self, connection: Any) -> None:
        """Reset the requested bytes of a closed connection; received parts are kept."""
        for part in self._parts.values():
            if part.connection == connection:
                part.requested, part.connection = part.received, None

    def forget(self, key: bytes, key_of: Mapping[bytes, bytes]) -> None:
        """Discard the payloads of an ended request, under each of its ids."""
        for request_id in [each for each in self._parts if key_of.get(each, each) == key]:
            del self._parts[request_id]

    def keep_only(self, request_ids: Any) -> None:
        """Discard the payloads of all other requests."""
        for request_id in [each for each in self._parts if each not in request_ids]:
            del self._parts[request_id]

"""A broker sends a client no bytes that the client has not requested on that connection."""

from typing import TYPE_CHECKING, Any

from tests.simulation.fleet_record import Violation
from tests.simulation.speed import payload_bytes

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def only_requested_chunks(broker: "BrokerPeer", client_id: bytes, chunk: Any, frames: Any) -> None:
    """Compare a CHUNK with the client's unanswered FETCHes."""
    size = payload_bytes(frames)
    for pending in broker.pending_fetches.get(client_id, ()):
        start, end = pending.fetch.offset, pending.fetch.offset + pending.fetch.length
        is_part = start <= chunk.offset and chunk.offset + size <= end
        same = (pending.fetch.request_id, pending.fetch.payload_id) == (chunk.request_id, chunk.payload_id)
        if same and is_part and size <= pending.left:
            pending.left -= size
            if not pending.left:
                broker.pending_fetches[client_id].remove(pending)
            return
    part = f"bytes {chunk.offset} to {chunk.offset + size} of {chunk.request_id.hex()}"
    raise Violation(
        "only_requested_chunks",
        f"{broker.name} sends unrequested {part}",
        broker.world.record.key_of.get(chunk.request_id),
    )

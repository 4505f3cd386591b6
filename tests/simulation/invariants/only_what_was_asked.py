"""A broker sends a client no bytes that the client has not requested on that connection."""

from typing import TYPE_CHECKING, Any

from tests.simulation.speed import payload_bytes
from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def only_what_was_asked(broker: "BrokerPeer", client_id: bytes, chunk: Any, frames: Any) -> None:
    """Compare a CHUNK with the client's unanswered FETCHes."""
    size = payload_bytes(frames)
    for ask in broker.asked.get(client_id, ()):
        start, end = ask.fetch.offset, ask.fetch.offset + ask.fetch.length
        is_part = start <= chunk.offset and chunk.offset + size <= end
        same = (ask.fetch.request_id, ask.fetch.payload_id) == (chunk.request_id, chunk.payload_id)
        if same and is_part and size <= ask.left:
            ask.left -= size
            if not ask.left:
                broker.asked[client_id].remove(ask)
            return
    text = f"{broker.name} sends bytes {chunk.offset} to {chunk.offset + size} of {chunk.request_id.hex()} unasked"
    raise Violation("only_what_was_asked", text, broker.world.witness.key_of.get(chunk.request_id))

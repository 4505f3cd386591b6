"""No process requests bytes again that it has received."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Fetch
from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.peers import Peer


def resumes_where_it_stopped(peer: "Peer", fetch: Fetch, received: int) -> None:
    """Check the offset of a FETCH."""
    if fetch.offset < received:
        text = f"{peer.name} asks for {fetch.request_id.hex()} from byte {fetch.offset}, it has {received}"
        raise Violation("resumes_where_it_stopped", text, peer.world.witness.key_of.get(fetch.request_id))

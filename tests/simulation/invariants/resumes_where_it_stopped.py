"""No process asks again for bytes that it has received."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Fetch
from tests.simulation.witness import SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.peers import Peer


def resumes_where_it_stopped(peer: "Peer", fetch: Fetch, received: int) -> None:
    """Judge the offset of a FETCH. A process that slept may drop what waited for it meanwhile."""
    slept = peer.trouble >= peer.world.now - SILENCE
    if fetch.offset < received and not slept:
        text = f"{peer.name} asks for {fetch.request_id.hex()} from byte {fetch.offset}, it has {received}"
        raise Violation("resumes_where_it_stopped", text, peer.world.witness.key_of.get(fetch.request_id))

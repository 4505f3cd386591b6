"""No process requests bytes again that it has received."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Fetch
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.peers import Peer


def transfers_resume(peer: "Peer", fetch: Fetch, received: int) -> None:
    """Check the offset of a FETCH."""
    if fetch.offset < received:
        text = f"{peer.name} requests {fetch.request_id.hex()} from byte {fetch.offset}, it has {received}"
        raise Violation("transfers_resume", text, peer.world.record.key_of.get(fetch.request_id))

"""No process requests more bytes on one connection than the announced window."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Fetch
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.peers import Peer


def fetch_within_window(peer: "Peer", fetch: Fetch, outstanding: int) -> None:
    """Check the number of requested bytes that have not arrived."""
    window = peer.world.plan.fetch_window_bytes
    if outstanding > window:
        text = f"{peer.name} has requested {outstanding} bytes, the window is {window}"
        raise Violation("fetch_within_window", text, peer.world.record.key_of.get(fetch.request_id))

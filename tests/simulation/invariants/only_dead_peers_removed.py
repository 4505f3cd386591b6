"""A broker counts a peer as dead only if it is dead, or if a fault kept it silent."""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import INTERVAL, LIVENESS, SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def only_dead_peers_removed(world: "World", broker: "BrokerPeer", name: str, last_received: float) -> None:
    """Check the removal of a dead peer. A freeze of the broker itself does not permit it."""
    peer = next((peer for peer in world.processes() if peer.name == name), None)
    since = world.now - SILENCE
    silent = world.now - last_received
    if silent < LIVENESS * INTERVAL / 1.04:
        raise Violation(
            "only_dead_peers_removed", f"{broker.name} removes {name}, last message {silent:.2f} s ago"
        )
    if peer is None or peer.last_fault >= since or world.record.link_had_fault(name, broker.address, since):
        return
    if peer.is_client and (peer.link is None or peer.link.name != broker.address):
        return  # it has connected to another broker
    raise Violation("only_dead_peers_removed", f"{broker.name} removes {name}, which is alive")

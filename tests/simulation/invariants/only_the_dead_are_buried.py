"""A broker counts a peer as dead only if it is dead, or if a fault kept it silent."""

from typing import TYPE_CHECKING

from tests.simulation.witness import INTERVAL, LIVENESS, SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def only_the_dead_are_buried(world: "World", broker: "BrokerPeer", name: str, heard: float) -> None:
    """Check the removal of a dead peer. A freeze of the broker itself is no excuse."""
    peer = next((peer for peer in world.processes() if peer.name == name), None)
    since = world.now - SILENCE
    silent = world.now - heard
    if silent < LIVENESS * INTERVAL / 1.04:
        raise Violation("only_the_dead_are_buried", f"{broker.name} buries {name}, heard {silent:.2f} s ago")
    if peer is None or peer.trouble >= since or world.witness.link_troubled(name, broker.address, since):
        return
    if peer.is_client and (peer.line is None or peer.line.name != broker.address):
        return  # it has connected to another broker
    raise Violation("only_the_dead_are_buried", f"{broker.name} buries {name}, which lives and is well")

"""A slow link that loses nothing never causes a new connection or a second attempt."""

from typing import TYPE_CHECKING

from tests.simulation.witness import SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.network import Line
    from tests.simulation.peers import Peer
    from tests.simulation.world import World


def healthy_links_hold(world: "World", peer: "Peer", line: "Line") -> None:
    """Check that a process does not replace a healthy connection to a live broker."""
    since = world.now - SILENCE
    broker = world.broker_named(line.name)
    if broker is None or broker.started >= since or broker.trouble >= since or peer.trouble >= since:
        return
    if world.witness.link_troubled(peer.name, line.name, since):
        return
    raise Violation("healthy_links_hold", f"{peer.name} gives up its connection to {broker.name}, which is well")


def nothing_requeued(world: "World") -> None:
    """Check that a fleet without faults has requeued nothing."""
    if not world.plan.is_healthy:
        return
    for broker in world.brokers:
        if broker is not None and (requeued := broker.core.table.counters.requeued):
            raise Violation("healthy_links_hold", f"{broker.name} has requeued {dict(requeued)} without a fault")

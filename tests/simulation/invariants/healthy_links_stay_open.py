"""A slow link that loses nothing never causes a new connection or a second attempt."""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import SILENCE, Violation

if TYPE_CHECKING:
    from tests.simulation.network import Link
    from tests.simulation.peers import Peer
    from tests.simulation.world import World


def healthy_links_stay_open(world: "World", peer: "Peer", link: "Link") -> None:
    """Check that a process does not replace a healthy connection to a live broker."""
    since = world.now - SILENCE
    broker = world.broker_named(link.name)
    if broker is None or broker.started >= since or broker.last_fault >= since or peer.last_fault >= since:
        return
    if world.record.link_had_fault(peer.name, link.name, since):
        return
    raise Violation("healthy_links_stay_open", f"{peer.name} replaces its healthy connection to {broker.name}")


def nothing_requeued(world: "World") -> None:
    """Check that a fleet without faults has requeued nothing."""
    if not world.plan.is_healthy:
        return
    for broker in world.brokers:
        if broker is not None and (requeued := broker.core.table.counters.requeued):
            raise Violation(
                "healthy_links_stay_open", f"{broker.name} has requeued {dict(requeued)} without a fault"
            )

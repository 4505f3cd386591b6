"""Faults that permit a second dispatch or a second generation of a request. Broker crashes and drains never do.

A fault permits it only if it affected a process that had the necessary information: the worker that holds the
request, its link to the broker that dispatches it again, that broker itself, or the client and the broker that it
left (which removes the client's requests one liveness time later). It must also be so recent that the hidden
information could not have been reported again since.
"""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import SILENCE, Submission
from tests.simulation.peers import Peer

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def has_worker_fault(world: "World", broker: "BrokerPeer", holder: Peer) -> bool:
    """Return whether holder, link or broker had a fault (freeze, hang, loss) within one liveness time."""
    since = world.now - SILENCE
    return (
        holder.last_fault >= since
        or broker.last_fault >= since
        or world.record.link_had_fault(holder.name, broker.address, since)
    )


def has_client_fault(world: "World", submission: Submission) -> bool:
    """Return whether the client, a broker or a link of the client had a fault within two liveness times.

    After one liveness time the client connects to another broker; after one more, the old broker has removed it.
    """
    since = world.now - 2 * SILENCE
    peers = (submission.client, *world.brokers)
    return any(peer is not None and peer.last_fault >= since for peer in peers) or world.record.any_link_had_fault(
        submission.client.name, since
    )

"""Faults that excuse a second dispatch or a second generation of a request. Broker crashes and drains never do.

A fault is an excuse only if it affected a process that had the necessary information: the worker that holds the
request, its link to the broker that dispatches it again, that broker itself, or the client and the broker that it
left (which removes the client's requests one liveness time later). It must also be so recent that the hidden
information could not have been reported again since.
"""

from typing import TYPE_CHECKING

from tests.simulation.peers import Peer
from tests.simulation.witness import SILENCE, Ask

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def of_the_worker(world: "World", broker: "BrokerPeer", holder: Peer) -> bool:
    """Return whether holder, link or broker had a fault (freeze, hang, loss) within one liveness time."""
    since = world.now - SILENCE
    return (
        holder.trouble >= since
        or broker.trouble >= since
        or world.witness.link_troubled(holder.name, broker.address, since)
    )


def of_the_client(world: "World", ask: Ask) -> bool:
    """Return whether the client, a broker or a link of the client had a fault within two liveness times.

    After one liveness time the client connects to another broker; after one more, the old broker has removed it.
    """
    since = world.now - 2 * SILENCE
    peers = (ask.client, *world.brokers)
    return any(peer is not None and peer.trouble >= since for peer in peers) or world.witness.any_link_troubled(
        ask.client.name, since
    )

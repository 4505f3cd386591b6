"""What explains that a request is given, or made, a second time. A crash of a broker never does, nor does a drain.

A fault explains it only if it touched one of those who would have had to know: the worker that has the request,
its link to the broker that gives it again, that broker itself, or the client and the broker that it left (which
gives its requests up only a silence later); and only if it was still on so lately that what it hid could not have
been learned again.
"""

from typing import TYPE_CHECKING

from tests.simulation.peers import Peer
from tests.simulation.witness import SILENCE, Ask

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def of_the_worker(world: "World", broker: "BrokerPeer", holder: Peer) -> bool:
    """The holder slept or hung, its link to the broker was in trouble, or the broker slept, within one silence."""
    since = world.now - SILENCE
    return (
        holder.trouble >= since
        or broker.trouble >= since
        or world.witness.link_troubled(holder.name, broker.address, since)
    )


def of_the_client(world: "World", ask: Ask) -> bool:
    """The client or one of the brokers slept, or a link of the client was in trouble, within two silences.

    One silence makes the client turn to another broker; one more, and the broker that it left has given it up.
    """
    since = world.now - 2 * SILENCE
    peers = (ask.client, *world.brokers)
    return any(peer is not None and peer.trouble >= since for peer in peers) or world.witness.any_link_troubled(
        ask.client.name, since
    )

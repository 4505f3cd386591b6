"""A broker does not dispatch a request again after its client has acknowledged the answer there."""

from typing import TYPE_CHECKING

from imagegen_protocol.messages import Work
from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World


def no_dispatch_after_ack(world: "World", broker: "BrokerPeer", work: Work) -> None:
    """Check a WORK, unless the plan lets the broker store only a few recent ids."""
    if work.request_id in broker.acknowledged and world.plan.max_recent_ids > 1000:
        key = world.record.key_of.get(work.request_id)
        text = f"{broker.name} dispatches {work.request_id.hex()}, which was acknowledged"
        raise Violation("no_dispatch_after_ack", text, key)

"""A broker rejects a request as `overloaded` only at one of its limits, and states when to retry."""

from typing import TYPE_CHECKING, Any

from tests.simulation.fleet_record import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.world import World

BODY_BYTES = 40
"""Upper bound of the body of a simulated request."""


def overloaded_only_when_full(world: "World", broker: "BrokerPeer", client_id: bytes, error: Any) -> None:
    """Check an ERROR `overloaded`, which is sent in the round in which its SUBMIT was read."""
    plan, core = world.plan, broker.core
    client = core.clients.by_id.get(client_id)
    own = list(client.requests.values()) if client else []
    full = (
        len(core.table.requests) >= plan.max_requests
        or len(own) >= plan.max_requests_per_client
        or sum(r.size for r in core.table.requests.values()) + BODY_BYTES > plan.max_bytes
        or sum(r.size for r in own) + BODY_BYTES > plan.max_bytes_per_client
    )
    # A broker that was frozen reads several messages per round: there may be room again.
    if not full and broker.last_fault < world.now - 0.01:
        raise Violation(
            "overloaded_only_when_full", f"{broker.name} is not full: {error.message}", error.request_id
        )
    if not error.retry_after_seconds or not 0.1 <= error.retry_after_seconds <= 60.0:
        raise Violation(
            "overloaded_only_when_full", f"retry_after_seconds is {error.retry_after_seconds}", error.request_id
        )

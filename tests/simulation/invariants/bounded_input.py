"""A broker holds no more bytes of requests than its settings allow, partly received payloads included."""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import Violation
from tests.simulation.speed import payload_bytes

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def bounded_input(broker: "BrokerPeer") -> None:
    """Check the payloads that a broker really holds."""
    held = sum(payload_bytes(request.payload) for request in broker.core.table.requests.values())
    most = broker.core.settings.max_bytes
    if held > most:
        raise Violation(
            "bounded_input", f"{broker.name} holds {held} bytes of requests, at most {most} are allowed"
        )

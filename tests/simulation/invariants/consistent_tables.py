"""The tables of a broker agree with one another."""

from typing import TYPE_CHECKING

from tests.simulation.fleet_record import Violation
from tests.unit.broker.consistency import check_consistency

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def consistent_tables(broker: "BrokerPeer") -> None:
    """Run the consistency check of the unit tests."""
    try:
        check_consistency(broker.core)
    except (AssertionError, KeyError) as error:
        raise Violation("consistent_tables", f"{broker.name}: {error!r}") from error

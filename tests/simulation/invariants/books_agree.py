"""The tables of a broker agree with one another."""

from typing import TYPE_CHECKING

from tests.simulation.witness import Violation
from tests.unit.broker.consistency import check_consistency

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def books_agree(broker: "BrokerPeer") -> None:
    """Run the consistency check of the unit tests."""
    try:
        check_consistency(broker.core)
    except (AssertionError, KeyError) as error:
        raise Violation("books_agree", f"{broker.name}: {error!r}") from error

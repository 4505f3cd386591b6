"""The broker's books agree with one another."""

from typing import TYPE_CHECKING

from tests.simulation.witness import Violation

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer


def books_agree(broker: "BrokerPeer") -> None:
    """Judge by the core's own `validate`."""
    try:
        broker.core.validate()
    except (AssertionError, KeyError) as error:
        raise Violation("books_agree", f"{broker.name}: {error!r}") from error

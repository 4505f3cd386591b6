"""The strategy `round-robin`."""

from imagegen_broker.core.records import Worker
from imagegen_broker.scheduling.strategies.base import OrderedStrategy
from imagegen_broker.scheduling.worker_index import Key


class RoundRobin(OrderedStrategy):
    """Chooses the least recently used worker."""

    name = "round-robin"

    def key(self, worker: Worker) -> Key:
        """Return the number of the last dispatch to the worker."""
        return (worker.last_used,)

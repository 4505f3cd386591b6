"""The strategy `queue-depth`."""

from imagegen_broker.core.records import Worker
from imagegen_broker.scheduling.strategies.base import OrderedStrategy
from imagegen_broker.scheduling.worker_index import Key


class QueueDepth(OrderedStrategy):
    """Chooses the worker with the fewest images to generate; of equals, the least recently used one."""

    name = "queue-depth"

    def key(self, worker: Worker) -> Key:
        """Return the queue depth in images, then the number of the last dispatch to the worker."""
        return (worker.load, worker.last_used)

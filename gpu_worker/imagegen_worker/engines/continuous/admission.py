"""Queue of images that wait to be admitted to the running batch."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class AdmissionQueue(Generic[T]):
    """A queue for each shape: first in, first out; the shape with the fewest running images is next.

    Many requests of one shape therefore can't starve another, and waiting shapes get equal shares of the batch.
    """

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[T]] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def add(self, shape: Hashable, item: T, *, first: bool = False) -> None:
        """Append an item to the queue of its shape, or prepend it if `first`."""
        queue = self._queues.setdefault(shape, deque())
        if first:
            queue.appendleft(item)
        else:
            queue.append(item)

    def shapes(self) -> Iterable[Hashable]:
        """Return the shapes that have waiting items."""
        return self._queues.keys()

    def take(
        self, running: Counter[Hashable], ready: Callable[[Hashable], bool] = lambda shape: True
    ) -> tuple[Hashable, T] | None:
        """Remove and return the next item of a shape that is `ready`, with its shape; None if there is none.

        `running` counts the running images by shape.
        """
        candidates = [shape for shape in self._queues if ready(shape)]
        if not candidates:
            return None
        shape = min(candidates, key=lambda shape: running[shape])  # the first one among equals
        queue = self._queues.pop(shape)
        item = queue.popleft()
        if queue:
            self._queues[shape] = queue  # at the end, so that equals alternate
        return shape, item

    def discard(self, unwanted: "set[T]") -> None:
        """Remove these items."""
        for shape, queue in list(self._queues.items()):
            kept = deque(item for item in queue if item not in unwanted)
            if kept:
                self._queues[shape] = kept
            else:
                del self._queues[shape]

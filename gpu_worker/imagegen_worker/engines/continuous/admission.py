"""Images that wait to be admitted to the running batch."""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class AdmissionQueue(Generic[T]):
    """First come, first served within a shape; the shape with the fewest running images goes first.

    Many requests of one size therefore cannot starve another, and each waiting size gets an equal share of slots.
    """

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[T]] = {}

    def __len__(self) -> int:
        return sum(len(line) for line in self._lines.values())

    def add(self, shape: Hashable, item: T, *, first: bool = False) -> None:
        """Let an item wait at the end of its shape's line, or `first` of all of that shape."""
        line = self._lines.setdefault(shape, deque())
        if first:
            line.appendleft(item)
        else:
            line.append(item)

    def shapes(self) -> Iterable[Hashable]:
        """Return the shapes of which items wait."""
        return self._lines.keys()

    def take(
        self, running: Counter[Hashable], ready: Callable[[Hashable], bool] = lambda shape: True
    ) -> tuple[Hashable, T] | None:
        """Return the next item and its shape, of those that are `ready`; None if none of those waits.

        `running` counts the images by shape.
        """
        candidates = [shape for shape in self._lines if ready(shape)]
        if not candidates:
            return None
        shape = min(candidates, key=lambda shape: running[shape])  # the one that came first, among equals
        line = self._lines.pop(shape)
        item = line.popleft()
        if line:
            self._lines[shape] = line  # at the end: equals take turns
        return shape, item

    def discard(self, unwanted: "set[T]") -> None:
        """Forget these items."""
        for shape, line in list(self._lines.items()):
            kept = deque(item for item in line if item not in unwanted)
            if kept:
                self._lines[shape] = kept
            else:
                del self._lines[shape]

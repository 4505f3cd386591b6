"""Which models are on the device, which must make room for another, and when."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Swap:
    """Load this model, once those `out` are gone."""

    name: str
    out: tuple[str, ...]


class ModelCache:
    """Models by name, up to `budget` bytes in all; one that is bigger than that stands alone.

    Wanted models come in turn, the one that was wanted first before the others; where there is free room for a
    later one it need not wait for that. Of those that have no work the least recently used make room, then those
    that were loaded first. One that has work stays at least
    `patience` seconds, counted from when the other was wanted and from when models changed places last; then
    nothing more is begun with it, so that it comes to rest and can go.
    """

    def __init__(self, budget: int, patience: float) -> None:
        self._budget = budget
        self._patience = patience
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._loads: dict[str, int] = {}
        self._count = 0
        self._busy: frozenset[str] = frozenset()
        self._wanted: dict[str, tuple[int, float]] = {}
        self._changed_at = float("-inf")

    @property
    def names(self) -> tuple[str, ...]:
        """The models on the device, the least recently used first."""
        return tuple(self._sizes)

    @property
    def wanted(self) -> tuple[str, ...]:
        """The models that wait to be loaded, in turn."""
        return tuple(self._wanted)

    def fits(self, size: int) -> bool:
        """Whether there is free room."""
        return sum(self._sizes.values()) + size <= self._budget

    def want(self, name: str, size: int, now: float) -> None:
        """Let a model of `size` bytes wait for its turn; no matter if it does so already, or is there."""
        if name not in self._sizes:
            self._wanted.setdefault(name, (size, now))

    def forget(self, name: str) -> None:
        """A model is not wanted any more."""
        self._wanted.pop(name, None)

    def put(self, name: str, size: int, now: float, *, changed: bool = False) -> None:
        """A model has been loaded; `changed`: in the place of others."""
        self._wanted.pop(name, None)
        self._sizes[name] = size
        self._count += 1
        self._loads[name] = self._count
        if changed:
            self._changed_at = now

    def remove(self, name: str) -> None:
        """A model is gone."""
        del self._sizes[name], self._loads[name]

    def use(self, name: str) -> None:
        """A model is at work."""
        self._sizes.move_to_end(name)

    def next(self, running: Collection[str], waiting: Collection[str], now: float) -> Swap | None:
        """Return what may be loaded now; None if nothing is wanted, or those that must go for it are in use.

        `running`: the models with images under way. `waiting`: those for which more are to be begun.
        """
        self._busy = frozenset((*running, *waiting))
        due = self._is_due(now)
        in_use = set(running) if due else {*running, *waiting}
        for place, (name, (size, _)) in enumerate(self._wanted.items()):
            out = self._out(size)
            if place > 0 and (due or out):
                continue
            if in_use.isdisjoint(out):
                return Swap(name, out)
        return None

    def closed(self, now: float) -> frozenset[str]:
        """Return the models with which nothing more may be begun, so that they come to rest."""
        if not self._is_due(now):
            return frozenset()
        return frozenset(self._out(next(iter(self._wanted.values()))[0]))

    def due_at(self) -> float | None:
        """Return when the first of the wanted has been patient for long enough; None if none is wanted."""
        first = next(iter(self._wanted.values()), None)
        return None if first is None else max(first[1], self._changed_at) + self._patience

    def _is_due(self, now: float) -> bool:
        at = self.due_at()
        return at is not None and now >= at

    def _out(self, size: int) -> tuple[str, ...]:
        """Return those that must go for a model of this size."""
        out: list[str] = []
        left = sum(self._sizes.values())
        idle = [name for name in self._sizes if name not in self._busy]
        for name in (*idle, *sorted(self._busy & self._sizes.keys(), key=self._loads.__getitem__)):
            if left + size <= self._budget:
                break
            out.append(name)
            left -= self._sizes[name]
        return tuple(out)

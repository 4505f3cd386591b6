"""The models on the device, and the choice of models to load and evict."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelSwap:
    """A model to load after the eviction of others."""

    name: str
    evict: tuple[str, ...]


class ModelCache:
    """LRU cache of models with up to `budget` bytes in all; a larger model is loaded alone.

    Models are loaded in order of request, except that a later one need not wait if it fits without an eviction.
    Idle models are evicted first, the least recently used one before others; then busy ones, the one that was
    loaded first before others. A busy model is evicted `patience` seconds after the request for the other model
    or after the last eviction, whichever is later. From then on it drains: no more jobs are started with it.
    """

    def __init__(self, budget: int, patience: float) -> None:
        self._budget = budget
        self._patience = patience
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._loads: dict[str, int] = {}
        self._count = 0
        self._busy: frozenset[str] = frozenset()
        self._pending: dict[str, tuple[int, float]] = {}
        self._evicted_at = float("-inf")

    @property
    def names(self) -> tuple[str, ...]:
        """The models on the device, the least recently used first."""
        return tuple(self._sizes)

    @property
    def pending(self) -> tuple[str, ...]:
        """The models to load, in order of request."""
        return tuple(self._pending)

    def fits(self, size: int) -> bool:
        """Return whether `size` bytes are free."""
        return sum(self._sizes.values()) + size <= self._budget

    def request(self, name: str, size: int, now: float) -> None:
        """Request a model of `size` bytes, unless it is pending or loaded."""
        if name not in self._sizes:
            self._pending.setdefault(name, (size, now))

    def withdraw(self, name: str) -> None:
        """Withdraw the request for a model."""
        self._pending.pop(name, None)

    def add(self, name: str, size: int, now: float, *, evicted: bool = False) -> None:
        """Add a loaded model of `size` bytes; `evicted`: models were evicted for it (see `patience`)."""
        self._pending.pop(name, None)
        self._sizes[name] = size
        self._count += 1
        self._loads[name] = self._count
        if evicted:
            self._evicted_at = now

    def remove(self, name: str) -> None:
        """Remove an evicted model."""
        del self._sizes[name], self._loads[name]

    def touch(self, name: str) -> None:
        """Mark a model as the most recently used one."""
        self._sizes.move_to_end(name)

    def next(self, running: Collection[str], waiting: Collection[str], now: float) -> ModelSwap | None:
        """Return the model to load now; None if no model is pending, or the models to evict for it still run jobs.

        `running`: models of running jobs. `waiting`: models of queued jobs.
        """
        self._busy = frozenset((*running, *waiting))
        expired = self._may_evict_busy(now)
        in_use = set(running) if expired else {*running, *waiting}
        for position, (name, (size, _)) in enumerate(self._pending.items()):
            evict = self._choose_evictions(size)
            if position > 0 and (expired or evict):
                continue
            if in_use.isdisjoint(evict):
                return ModelSwap(name, evict)
        return None

    def draining(self, now: float) -> frozenset[str]:
        """Return the models that are to be evicted once their running jobs have ended."""
        if not self._may_evict_busy(now):
            return frozenset()
        return frozenset(self._choose_evictions(next(iter(self._pending.values()))[0]))

    def next_deadline(self) -> float | None:
        """Return when busy models may be evicted for the first pending one; None if none is pending."""
        first = next(iter(self._pending.values()), None)
        return None if first is None else max(first[1], self._evicted_at) + self._patience

    def _may_evict_busy(self, now: float) -> bool:
        at = self.next_deadline()
        return at is not None and now >= at

    def _choose_evictions(self, size: int) -> tuple[str, ...]:
        """Return the models to evict for a model of `size` bytes."""
        evict: list[str] = []
        used = sum(self._sizes.values())
        idle = [name for name in self._sizes if name not in self._busy]
        for name in (*idle, *sorted(self._busy & self._sizes.keys(), key=self._loads.__getitem__)):
            if used + size <= self._budget:
                break
            evict.append(name)
            used -= self._sizes[name]
        return tuple(evict)

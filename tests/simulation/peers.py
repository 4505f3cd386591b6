"""The base of all simulated processes: a local clock, freezing, and an alarm for the core's deadline."""

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.simulation.network import Link
    from tests.simulation.world import World


class Peer:
    """A process. Its core gets the times of `local()`; the simulated time is `world.now`."""

    is_client = False
    is_greedy = False
    """Whether it has ever requested more bytes than its core would."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.id = name.encode()
        self.alive = True
        self.frozen_until = 0.0
        """The end of the last freeze; the process is frozen until then."""
        self.last_fault = -1.0
        """The last time at which it was frozen or its device hung."""
        rng = world.rng
        self._rate = rng.uniform(0.97, 1.03) if world.plan.skew else 1.0
        self._offset = rng.uniform(0.0, 1000.0)
        self._alarm = 0.0
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    # ---- time -------------------------------------------------------------------------------------------

    def local(self) -> float:
        """Return the time of the process's own monotonic clock."""
        return self._offset + self.world.now * self._rate

    def arm(self, deadline: float | None) -> None:
        """Call `tick` at `deadline` (local time), slightly late, as real timers do."""
        if deadline is None or deadline == float("inf"):
            return
        when = max((deadline - self._offset) / self._rate + 1e-6, self.world.now)
        if not self._alarm or when < self._alarm - 1e-9:
            self._alarm = when
            self.world.at(when, self._ring, when)

    def _ring(self, alarm: float) -> None:
        if alarm != self._alarm or not self.alive:
            return
        self._alarm = 0.0
        if not self.frozen:
            self.on_alarm()

    def on_alarm(self) -> None:
        """Call `tick`, or set the alarm again if the deadline has moved."""
        deadline = self.next_deadline()
        if deadline is not None and deadline <= self.local():
            self.tick()
        else:
            self.arm(deadline)

    # ---- freezing ---------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """Whether it is stopped (SIGSTOP)."""
        return self.frozen_until > self.world.now

    def freeze(self, seconds: float) -> None:
        """Freeze the process for some seconds; messages that arrive meanwhile wait."""
        was_frozen = self.frozen
        self.frozen_until = max(self.frozen_until, self.world.now + seconds)
        self.last_fault = max(self.last_fault, self.frozen_until)
        if not was_frozen:
            self.world.at(self.frozen_until, self._thaw)

    def _thaw(self) -> None:
        if not self.alive:
            return
        if self.frozen:  # it was frozen again meanwhile
            self.world.at(self.frozen_until, self._thaw)
            return
        self.wake()

    def wake(self) -> None:
        """Read the waiting messages, then check deadlines, as the shells do."""
        while self._inbox and self.alive:
            what, arguments = self._inbox.popleft()
            what(*arguments)
        if self.alive:
            self.tick()

    def when_awake(self, what: Callable[..., None], *arguments: Any) -> None:
        """Call `what` now or, if the process is frozen, when it wakes."""
        if self.frozen:
            self._inbox.append((what, arguments))
        elif self.alive:
            what(*arguments)

    # ---- implemented by each kind -----------------------------------------------------------------------

    def receive(self, link: "Link", message: Any, frames: Sequence[Any]) -> None:
        """Handle a message that has arrived."""
        raise NotImplementedError

    def next_deadline(self) -> float | None:
        """Return the core's next deadline in local time."""
        raise NotImplementedError

    def tick(self) -> None:
        """Let the core handle its due deadlines."""
        raise NotImplementedError

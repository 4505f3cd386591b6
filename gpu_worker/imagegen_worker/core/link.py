"""What a worker knows of one broker: is it registered there, and does the broker live."""

from collections.abc import Sequence
from dataclasses import dataclass

from imagegen_protocol.limits import DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
from imagegen_protocol.messages import BrokerHeartbeat

NEWS_SECONDS = 0.02
"""How long news that are in no hurry wait for others to go in one heartbeat."""


@dataclass(slots=True)
class Link:
    """One broker, seen from the worker. Times are monotonic seconds.

    `session` 0 means: not registered. `asked`: a READY went out and has not been answered.
    """

    index: int
    unregistered_since: float
    send_at: float
    """When the next READY (unregistered) or HEARTBEAT (registered) is due."""
    session: int = 0
    epoch: bytes | None = None
    heard_epoch: bytes | None = None
    """The epoch of the last broker heartbeat, whether or not it registered this worker."""
    beat: int = 0
    interval: float = DEFAULT_HEARTBEAT_INTERVAL_SECONDS
    liveness: int = DEFAULT_LIVENESS
    heard_at: float = 0.0
    asked: bool = False
    unanswered: int = 0
    """Intervals that went by since the first READY that has had no answer."""
    refusal: str = ""
    """The last refusal that was logged, so that it is logged once."""

    @property
    def registered(self) -> bool:
        """Whether the broker has taken our READY, and lives."""
        return self.session > 0

    @property
    def dead_at(self) -> float:
        """When a registered broker counts as dead, if it stays silent."""
        return self.heard_at + self.liveness * self.interval

    @property
    def silent_since(self) -> float:
        """Since when nothing has been heard of the broker; infinite while we are registered there."""
        return float("inf") if self.registered else max(self.unregistered_since, self.heard_at)

    def goes_unanswered(self) -> bool:
        """Count an interval without an answer to READY; return whether it is time, once, to say so."""
        self.unanswered += 1
        return self.unanswered == self.liveness and not self.refusal

    def needs_redial(self, now: float) -> bool:
        """Return whether `liveness` further intervals have passed without an answer to READY or any message."""
        silent = now >= self.heard_at + self.liveness * self.interval
        return self.asked and silent and self.unanswered > 0 and self.unanswered % self.liveness == 0

    def repeats(self, others: Sequence["Link"]) -> bool:
        """Return whether an earlier link has this worker registered at the same broker, under another address."""
        earlier = [other for other in others if other.index < self.index and other.registered]
        return self.heard_epoch is not None and self.heard_epoch in [other.epoch for other in earlier]

    def tell_soon(self, now: float) -> None:
        """Have a heartbeat sent in a moment, where we are registered."""
        if self.registered:
            self.send_at = min(self.send_at, now + NEWS_SECONDS)

    def announce(self, heartbeat: BrokerHeartbeat, now: float) -> None:
        """Take over what every broker heartbeat tells."""
        self.beat = heartbeat.beat
        self.heard_epoch = heartbeat.epoch
        self.interval, self.liveness = heartbeat.interval_seconds, heartbeat.liveness
        self.send_at = min(self.send_at, now + self.interval)

    def register(self, heartbeat: BrokerHeartbeat) -> None:
        """The broker has answered READY."""
        self.session, self.epoch = heartbeat.session, heartbeat.epoch
        self.asked = False
        self.unanswered = 0
        self.refusal = ""

    def unregister(self, now: float) -> None:
        """The broker is silent, or does not know us any more: READY is due now."""
        if self.session:
            self.unregistered_since = now
        self.session = 0
        self.asked = False
        self.send_at = now

    def knows(self, heartbeat: BrokerHeartbeat) -> bool:
        """Whether a heartbeat speaks of the registration that we hold."""
        return (heartbeat.epoch, heartbeat.session) == (self.epoch, self.session)

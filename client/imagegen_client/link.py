"""What the client knows of its connection: to whom, whether it is alive, and what the broker announced."""

from collections.abc import Sequence

from imagegen_protocol.limits import DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
from imagegen_protocol.messages import BrokerHeartbeat


class Link:
    """One connection at a time, to one of several endpoints; times are monotonic seconds."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        if not endpoints:
            raise ValueError("at least one broker endpoint is needed")
        self.endpoints = tuple(endpoints)
        self.dials = 0
        self.up = False
        """The broker has spoken on this connection."""
        self.ever_heard = False
        """A broker has spoken on any connection."""
        self.interval = DEFAULT_HEARTBEAT_INTERVAL_SECONDS
        self.next_heartbeat = 0.0
        self._liveness = DEFAULT_LIVENESS
        self._dialled = self._last_heard = 0.0
        self._standing: tuple[bytes, int] | None = None
        self._refusing: set[str] = set()
        self.suspicions: dict[str, str] = {}
        """By endpoint: the likely reason why no handshake succeeds there."""

    @property
    def endpoint(self) -> str:
        """The endpoint dialled last, or the one to be dialled first."""
        return self.endpoints[max(self.dials - 1, 0) % len(self.endpoints)]

    @property
    def silence(self) -> float:
        """Seconds of silence after which the broker counts as dead."""
        return self.interval * self._liveness

    @property
    def dead_at(self) -> float:
        """When the broker counts as dead, if it stays silent."""
        return self._last_heard + self.silence

    def dial(self, now: float) -> None:
        """Turn to the next endpoint, of which nothing is known yet."""
        self.dials += 1
        self.up = False
        self.interval, self._liveness = DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
        self._standing = None
        self._dialled = self._last_heard = now
        self.next_heartbeat = now + self.interval

    def redial(self, now: float) -> bool:
        """Start again at the same endpoint; return False if it was dialled less than an interval ago."""
        if now < self._dialled + min(self.interval, DEFAULT_HEARTBEAT_INTERVAL_SECONDS):
            return False
        self.dials -= 1
        self.dial(now)
        return True

    def suspect(self, reason: str) -> bool:
        """Note why no handshake succeeds at the endpoint; return whether that is new."""
        known = self.suspicions.get(self.endpoint)
        self.suspicions[self.endpoint] = reason
        return reason != known

    def refused(self) -> bool:
        """Note that the endpoint lets us not in; return whether none does."""
        self._refusing.add(self.endpoint)
        return len(self._refusing) == len(set(self.endpoints))

    def heard(self, now: float) -> bool:
        """Note a message; return whether it is the first one, or the first after a deadly silence."""
        first = not self.up or now >= self.dead_at
        self.up = self.ever_heard = True
        self._refusing.clear()
        self.suspicions.clear()
        self._last_heard = now
        return first

    def announced(self, heartbeat: BrokerHeartbeat, now: float) -> bool:
        """Take over what a heartbeat says; return whether the broker is another one or has forgotten us."""
        self.interval, self._liveness = heartbeat.interval_seconds, heartbeat.liveness
        self.next_heartbeat = min(self.next_heartbeat, now + self.interval)
        before, self._standing = self._standing, (heartbeat.epoch, heartbeat.session)
        return before is not None and before != self._standing

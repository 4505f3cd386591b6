"""State of the client's connection: endpoint, liveness, and the settings that the broker announced."""

from collections.abc import Sequence

from imagegen_protocol.limits import DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
from imagegen_protocol.messages import BrokerHeartbeat


class Link:
    """One connection at a time, to one of several endpoints in turn; times are monotonic seconds."""

    def __init__(self, endpoints: Sequence[str]) -> None:
        if not endpoints:
            raise ValueError("broker: expected at least one endpoint, got none")
        self.endpoints = tuple(endpoints)
        self.is_established = False
        """Whether the broker has sent a message on this connection."""
        self.ever_established = False
        """Whether a broker has sent a message on any connection."""
        self.interval = DEFAULT_HEARTBEAT_INTERVAL_SECONDS
        """Seconds between heartbeats, as announced by the broker."""
        self.next_heartbeat = 0.0
        self.handshake_failures: dict[str, str] = {}
        """Likely reason why no handshake succeeds, by endpoint."""
        self._liveness = DEFAULT_LIVENESS
        self._connections = 0
        self._connected_at = self._last_received = 0.0
        self._session: tuple[bytes, int] | None = None
        self._rejecting: set[str] = set()

    @property
    def is_started(self) -> bool:
        """Whether a connection has been opened."""
        return self._connections > 0

    @property
    def endpoint(self) -> str:
        """The current endpoint; before the first connection, the first one."""
        return self.endpoints[max(self._connections - 1, 0) % len(self.endpoints)]

    @property
    def liveness_timeout(self) -> float:
        """Seconds of silence after which the broker counts as dead."""
        return self.interval * self._liveness

    @property
    def dead_at(self) -> float:
        """Time at which the broker counts as dead if it stays silent."""
        return self._last_received + self.liveness_timeout

    def connect_next(self, now: float) -> None:
        """Move on to the next endpoint and reset what the previous broker announced."""
        self._connections += 1
        self.is_established = False
        self.interval, self._liveness = DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
        self._session = None
        self._connected_at = self._last_received = now
        self.next_heartbeat = now + self.interval

    def reconnect(self, now: float) -> bool:
        """Connect to the same endpoint again; return False if it was connected less than an interval ago."""
        if now < self._connected_at + min(self.interval, DEFAULT_HEARTBEAT_INTERVAL_SECONDS):
            return False
        self._connections -= 1
        self.connect_next(now)
        return True

    def record_failure(self, reason: str) -> bool:
        """Record why handshakes fail at the endpoint; return whether the reason is new."""
        known = self.handshake_failures.get(self.endpoint)
        self.handshake_failures[self.endpoint] = reason
        return reason != known

    def record_rejection(self) -> bool:
        """Record that the endpoint rejected the credentials; return whether all endpoints did."""
        self._rejecting.add(self.endpoint)
        return len(self._rejecting) == len(set(self.endpoints))

    def record_message(self, now: float) -> bool:
        """Record a message; return whether it is the first one, or the first after the broker counted as dead."""
        first = not self.is_established or now >= self.dead_at
        self.is_established = self.ever_established = True
        self._rejecting.clear()
        self.handshake_failures.clear()
        self._last_received = now
        return first

    def apply_heartbeat(self, heartbeat: BrokerHeartbeat, now: float) -> bool:
        """Apply the announced settings; return whether the broker restarted or opened a new session."""
        self.interval, self._liveness = heartbeat.interval_seconds, heartbeat.liveness
        self.next_heartbeat = min(self.next_heartbeat, now + self.interval)
        before, self._session = self._session, (heartbeat.epoch, heartbeat.session)
        return before is not None and before != self._session

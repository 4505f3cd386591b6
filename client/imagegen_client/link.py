"""State of the client's connection: endpoint, liveness, and the settings that the broker announced."""

from collections.abc import Sequence
from math import inf

from imagegen_protocol.limits import (
    DEFAULT_FETCH_WINDOW_BYTES,
    DEFAULT_HEARTBEAT_INTERVAL_SECONDS,
    DEFAULT_LIVENESS,
)
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
        self.liveness = DEFAULT_LIVENESS
        """Silent intervals after which the broker counts as dead, as announced by the broker."""
        self.fetch_window_bytes = DEFAULT_FETCH_WINDOW_BYTES
        """Maximum number of bytes requested and not received, as announced by the broker."""
        self.next_heartbeat = 0.0
        self.resume_at: float | None = None
        """When to connect again after all endpoints have refused this client; None while there is a connection."""
        self.failures: dict[str, str] = {}
        """Likely reason why no broker serves this client, by endpoint."""
        self._connections = 0
        self._connected_at = self._last_received = 0.0
        self._session: tuple[bytes, int] | None = None
        self._refusals: dict[str, float | None] = {}
        """Endpoints that have refused this client, with the seconds to wait; None for a final refusal."""

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
        return self.interval * self.liveness

    @property
    def dead_at(self) -> float:
        """Time at which the broker counts as dead if it stays silent."""
        return self._last_received + self.liveness_timeout

    def connect_next(self, now: float) -> None:
        """Move on to the next endpoint and reset what the previous broker announced."""
        self._connections += 1
        self.is_established = False
        self.resume_at = None
        self.interval, self.liveness = DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
        self.fetch_window_bytes = DEFAULT_FETCH_WINDOW_BYTES
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
        """Record why the endpoint does not serve this client; return whether the reason is new."""
        known = self.failures.get(self.endpoint)
        self.failures[self.endpoint] = reason
        return reason != known

    def record_refusal(self, retry_seconds: float | None) -> bool:
        """Record that the endpoint refused this client, finally if `retry_seconds` is None.

        Returns whether all endpoints have refused it.
        """
        self._refusals[self.endpoint] = retry_seconds
        return len(self._refusals) == len(set(self.endpoints))

    def take_refusals(self) -> float | None:
        """Clear the refusals; return the shortest time to wait, None if all of them are final."""
        shortest = min((inf if seconds is None else seconds for seconds in self._refusals.values()), default=inf)
        self._refusals.clear()
        return None if shortest == inf else shortest

    def outage_reason(self) -> str:
        """Return why no broker serves this client."""
        reason = f"no broker answers at {' or '.join(self.endpoints)}"
        return "; ".join([reason, *(f"{endpoint}: {failure}" for endpoint, failure in self.failures.items())])

    def pause(self, seconds: float, now: float) -> None:
        """Send nothing, and connect to the next endpoint after `seconds`."""
        self.is_established = False
        self.resume_at = now + seconds

    def record_message(self, now: float) -> bool:
        """Record a message; return whether it is the first one, or the first after the broker counted as dead."""
        first = not self.is_established or now >= self.dead_at
        self.is_established = self.ever_established = True
        self._refusals.clear()
        self.failures.clear()
        self._last_received = now
        return first

    def apply_heartbeat(self, heartbeat: BrokerHeartbeat, now: float) -> bool:
        """Apply the announced settings; return whether the broker restarted or opened a new session."""
        self.interval, self.liveness = heartbeat.interval_seconds, heartbeat.liveness
        self.fetch_window_bytes = heartbeat.fetch_window_bytes
        self.next_heartbeat = min(self.next_heartbeat, now + self.interval)
        before, self._session = self._session, (heartbeat.epoch, heartbeat.session)
        return before is not None and before != self._session

"""Periodic snapshots of the fleet, with a short history for rates and trends."""

import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future

from imagegen_client.fleet import BrokerStatus, FleetSnapshot, images_per_second
from imagegen_client.sync import Client
from imagegen_protocol import BrokerUnreachableError
from imagegen_protocol.statistics import Statistics

RATE_SECONDS = 10.0
"""Period over which images per second are measured: batches end in bursts, and totals arrive with heartbeats."""
TREND_LENGTH = 60
"""Maximum number of snapshots in a trend."""


class FleetWatch:
    """History of the fleet. `brokers`: a client for each endpoint."""

    def __init__(self, brokers: Mapping[str, Client], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._clients = brokers
        self._answered_at = dict.fromkeys(brokers, clock())
        self._status = {endpoint: BrokerStatus(endpoint, None, 0.0) for endpoint in brokers}
        self._history: deque[FleetSnapshot] = deque()
        self.trends: dict[str, deque[float]] = {}
        """Images per second of each worker in the last snapshots, the newest last."""

    @property
    def now(self) -> FleetSnapshot:
        """The latest snapshot."""
        return self._history[-1]

    @property
    def before(self) -> FleetSnapshot | None:
        """The snapshot about `RATE_SECONDS` earlier, or the oldest; None if there is only one."""
        return self._history[0] if len(self._history) > 1 else None

    def query(self, timeout: float) -> dict[str, Future[Statistics]]:
        """Query all brokers; each future is done after at most `timeout` seconds."""
        return {endpoint: client.request_stats(timeout) for endpoint, client in self._clients.items()}

    def update(self, answers: Mapping[str, Future[Statistics]]) -> None:
        """Add a snapshot of the answers; a broker whose future is not done counts as unreachable.

        Raises the `ImagegenError` of a broker that rejects this client.
        """
        now = self._clock()
        for endpoint, answer in answers.items():
            if answer.done() and not isinstance(answer.exception(), BrokerUnreachableError):
                self._status[endpoint] = BrokerStatus(endpoint, answer.result())
                self._answered_at[endpoint] = now
            else:
                lost_for = now - self._answered_at[endpoint]
                self._status[endpoint] = BrokerStatus(endpoint, self._status[endpoint].statistics, lost_for)
        self._record(FleetSnapshot(now, tuple(self._status.values())))

    def _record(self, snapshot: FleetSnapshot) -> None:
        self._history.append(snapshot)
        while len(self._history) > 2 and snapshot.at - self._history[0].at > RATE_SECONDS:
            self._history.popleft()
        workers, stale = snapshot.workers(), snapshot.stale_workers()
        for name, rate in images_per_second(self.before, snapshot).items():
            if name not in stale:
                self.trends.setdefault(name, deque(maxlen=TREND_LENGTH)).append(rate)
        for name in self.trends.keys() - workers.keys():
            del self.trends[name]

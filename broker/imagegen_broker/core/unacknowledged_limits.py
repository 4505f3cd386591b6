"""`UnacknowledgedLimits`: a maximum number of requests of one client that are at workers or unacknowledged."""

from imagegen_broker.core.records import Client, Settings
from imagegen_broker.scheduling.scheduler import Scheduler


class UnacknowledgedLimits:
    """Limits the number of requests of one client that are at workers, or answered and not acknowledged.

    While a client is at its maximum of DISPATCHED and DELIVERED requests, or its connection does not accept
    messages, the client is paused in the scheduler's queue: none of its requests is dispatched.
    """

    def __init__(self, settings: Settings, scheduler: Scheduler) -> None:
        self._settings = settings
        self._scheduler = scheduler
        self.maximum = settings.max_unacknowledged_per_client
        """Maximum of one client's requests that are DISPATCHED or DELIVERED; see `capacity_changed`."""
        self._busy_clients: dict[bytes, Client] = {}
        """Clients at or above the setting, the lower bound of `maximum`: a change of it can affect only these."""

    def capacity_changed(self) -> None:
        """Set the maximum to at least twice the capacity of all workers, so that one client can fill the fleet."""
        least = self._settings.max_unacknowledged_per_client
        self.maximum = max(least, 2 * self._scheduler.pool.capacity)
        for client in self._busy_clients.values():
            self.pause_or_resume(client)

    def increase(self, client: Client) -> None:
        """Count one more request of a client."""
        client.unacknowledged += 1
        if client.unacknowledged == self._settings.max_unacknowledged_per_client:
            self._busy_clients[client.id] = client
        if client.unacknowledged >= self.maximum_of(client):
            self.pause_or_resume(client)

    def decrease(self, client: Client) -> None:
        """Count one request of a client less."""
        client.unacknowledged -= 1
        if client.unacknowledged == self._settings.max_unacknowledged_per_client - 1:
            self._busy_clients.pop(client.id, None)
        if client.unacknowledged == self.maximum_of(client) - 1:
            self.pause_or_resume(client)

    def maximum_of(self, client: Client) -> int:
        """Return the maximum of a client's requests that are DISPATCHED or DELIVERED."""
        own = client.receive_maximum
        return self.maximum if own is None else min(own, self.maximum)

    def pause_or_resume(self, client: Client) -> None:
        """Pause a client that is at its maximum or whose connection is blocked; resume any other."""
        if not client.is_reachable or client.unacknowledged >= self.maximum_of(client):
            self._scheduler.queue.pause(client)
        else:
            self._scheduler.queue.resume(client)

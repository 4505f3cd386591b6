"""The brokers, seen from the gateway: a connection for each key, and the statistics."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from imagegen_client import AsyncClient, BrokerUnreachableError, Statistics
from imagegen_gateway.config import Settings
from imagegen_gateway.errors import ApiError

STATS_SECONDS = 0.5
"""How old statistics may be."""
PATIENCE_SECONDS = 3.0
"""How long a broker may take to send them."""
IDLE_SECONDS = 300.0
"""After which the connection of a key that asks for nothing is closed."""


class _Connection:
    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.uses = 0
        self.used = time.monotonic()


class Fleet:
    """Opens what is needed and closes what is not; all of it belongs to one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Raises `ValueError` for endpoints and key files that can't be ones."""
        self._settings = settings
        self._connections: dict[str, _Connection] = {}
        self._monitor = self._open()
        self._asked = 0.0
        self._stats: asyncio.Future[Statistics] | None = None

    def _open(self) -> AsyncClient:
        settings = self._settings
        return AsyncClient(settings.brokers, key=settings.key, broker_key=settings.broker_key)

    @contextmanager
    def client(self, caller_id: str) -> Iterator[AsyncClient]:
        """Give the connection of a key, which the broker's fair share knows as one client."""
        if (connection := self._connections.get(caller_id)) is None:
            connection = self._connections[caller_id] = _Connection(self._open())
        connection.uses += 1
        try:
            yield connection.client
        finally:
            connection.uses -= 1
            connection.used = time.monotonic()

    async def stats(self) -> Statistics:
        """Return the broker's statistics, at most half a second old. Raises `BrokerUnreachableError`."""
        now = time.monotonic()
        if self._stats is None or (self._stats.done() and now - self._asked > STATS_SECONDS):
            self._asked = now
            self._stats = asyncio.ensure_future(self._monitor.stats(PATIENCE_SECONDS))
            # Whoever asked may have hung up: an error that nobody takes would be logged by the loop.
            self._stats.add_done_callback(lambda stats: stats.cancelled() or stats.exception())
        return await asyncio.shield(self._stats)

    async def require_workers(self) -> None:
        """Raise the `ApiError` for a fleet that can make nothing now."""
        try:
            stats = await self.stats()
        except BrokerUnreachableError as error:
            raise ApiError(503, "broker_unreachable", error.message, retry_after=5) from error
        if not stats.num_gpus:
            raise ApiError(503, "no_worker", "no worker is there now; ask again soon", retry_after=5)

    async def close_idle(self) -> None:
        """Close the connections that have not been used for a while."""
        now = time.monotonic()
        for key, connection in list(self._connections.items()):
            if not connection.uses and now - connection.used > IDLE_SECONDS:
                del self._connections[key]
                await connection.client.close()

    async def close(self) -> None:
        """Take leave of the brokers: what is unfinished is given up."""
        clients = [self._monitor, *(connection.client for connection in self._connections.values())]
        self._connections.clear()
        await asyncio.gather(*(client.close() for client in clients))
        if self._stats is not None:
            self._stats.cancel()
            await asyncio.gather(self._stats, return_exceptions=True)


class InFlight:
    """Counts what has not ended, by key."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __getitem__(self, caller_id: str) -> int:
        return self._counts[caller_id]

    def begin(self, caller_id: str) -> None:
        """Count one more."""
        self._counts[caller_id] += 1

    def end(self, caller_id: str) -> None:
        """Count one less."""
        self._counts[caller_id] -= 1
        if not self._counts[caller_id]:
            del self._counts[caller_id]

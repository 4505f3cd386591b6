"""Connections to the brokers: one client for each API key, and one for statistics."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from imagegen_client import AsyncClient, BrokerUnreachableError, ImagegenError, Statistics
from imagegen_gateway.config import Settings
from imagegen_gateway.errors import ApiError

STATS_SECONDS = 0.5
"""Maximum age of cached statistics."""
STATS_TIMEOUT_SECONDS = 3.0
"""Timeout of a request for statistics."""
IDLE_SECONDS = 300.0
"""Time after which the unused connection of a key is closed."""


class _Connection:
    def __init__(self, client: AsyncClient) -> None:
        self.client = client
        self.uses = 0
        self.used = time.monotonic()


class ClientPool:
    """Clients of the brokers, opened on first use and closed when idle. They belong to one event loop."""

    def __init__(self, settings: Settings) -> None:
        """Open the client for statistics. Raises `ValueError` for invalid endpoints and key files."""
        self._settings = settings
        self._connections: dict[str, _Connection] = {}
        self._monitor = self._open()
        self._stats_requested = 0.0
        self._stats: asyncio.Future[Statistics] | None = None

    def _open(self) -> AsyncClient:
        settings = self._settings
        return AsyncClient(settings.brokers, key=settings.key, broker_key=settings.broker_key)

    @contextmanager
    def client(self, key_id: str) -> Iterator[AsyncClient]:
        """Return the client of a key, so that the broker's fair share is between keys."""
        if (connection := self._connections.get(key_id)) is None:
            connection = self._connections[key_id] = _Connection(self._open())
        connection.uses += 1
        try:
            yield connection.client
        finally:
            connection.uses -= 1
            connection.used = time.monotonic()

    async def stats(self) -> Statistics:
        """Return the broker's statistics, at most half a second old. Raises `BrokerUnreachableError`."""
        now = time.monotonic()
        if self._stats is None or (self._stats.done() and now - self._stats_requested > STATS_SECONDS):
            self._stats_requested = now
            self._stats = asyncio.ensure_future(self._monitor.stats(STATS_TIMEOUT_SECONDS))
            # If all callers are cancelled, asyncio would log the error as never retrieved.
            self._stats.add_done_callback(lambda stats: stats.cancelled() or stats.exception())
        return await asyncio.shield(self._stats)

    async def known_stats(self) -> Statistics | None:
        """Return the broker's statistics; None if no broker answers."""
        try:
            return await self.stats()
        except ImagegenError:
            return None

    async def require_workers(self) -> None:
        """Raise `ApiError` 503 if no broker answers or no worker is registered."""
        try:
            stats = await self.stats()
        except BrokerUnreachableError as error:
            raise ApiError(503, "broker_unreachable", error.message, retry_after=5) from error
        if not stats.num_gpus:
            raise ApiError(503, "no_worker", "no worker is registered; retry later", retry_after=5)

    async def close_idle(self) -> None:
        """Close the connections that have been unused for `IDLE_SECONDS`."""
        now = time.monotonic()
        for key, connection in list(self._connections.items()):
            if not connection.uses and now - connection.used > IDLE_SECONDS:
                del self._connections[key]
                await connection.client.close()

    async def close(self) -> None:
        """Disconnect from the brokers; unfinished requests fail with `ClientClosedError`."""
        clients = [self._monitor, *(connection.client for connection in self._connections.values())]
        self._connections.clear()
        await asyncio.gather(*(client.close() for client in clients))
        if self._stats is not None:
            self._stats.cancel()
            await asyncio.gather(self._stats, return_exceptions=True)


class InFlightCounter:
    """Number of unfinished requests, jobs or streams for each key."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __getitem__(self, key_id: str) -> int:
        return self._counts[key_id]

    def begin(self, key_id: str) -> None:
        """Increment the count of a key."""
        self._counts[key_id] += 1

    def end(self, key_id: str) -> None:
        """Decrement the count of a key."""
        self._counts[key_id] -= 1
        if not self._counts[key_id]:
            del self._counts[key_id]

"""All that the paths work with, opened in order and closed in the reverse one."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

from imagegen_common.logs import log
from imagegen_gateway.config import Settings
from imagegen_gateway.core.limits import TokenBucket
from imagegen_gateway.database import Database, open_database
from imagegen_gateway.errors import ApiError
from imagegen_gateway.fleet import Fleet, InFlight
from imagegen_gateway.jobs.runner import Runner
from imagegen_gateway.jobs.store import Store
from imagegen_gateway.jobs.view import show
from imagegen_gateway.keys import Caller, Keys
from imagegen_gateway.metrics import Metrics
from imagegen_gateway.results import Results, default_url
from imagegen_gateway.webhooks import Webhooks

SWEEP_SECONDS = 30.0
STREAMS = 100
"""Streams of events that a key may have open at a time."""

_log = logging.getLogger("imagegen.gateway")


@dataclass(slots=True, kw_only=True)
class Services:
    """One of each; they belong to one event loop."""

    settings: Settings
    metrics: Metrics
    database: Database
    keys: Keys
    results: Results
    store: Store
    fleet: Fleet
    in_flight: InFlight
    streams: InFlight = field(default_factory=InFlight)
    runner: Runner
    webhooks: Webhooks
    stopping: asyncio.Event
    """Set when the gateway is told to end: what would go on for long should end now."""
    started: float = field(default_factory=time.time)
    _buckets: dict[str, TokenBucket] = field(default_factory=dict)

    @contextmanager
    def admitted(self, caller: Caller) -> Iterator[None]:
        """Count a request of a key while it lasts. Raises `ApiError` 429 beyond the key's rate and number."""
        self.admit(caller)
        self.in_flight.begin(caller.id)
        try:
            yield
        finally:
            self.in_flight.end(caller.id)

    def admit(self, caller: Caller) -> None:
        """Raise `ApiError` 429 beyond the key's rate and number in flight."""
        limits = caller.limits
        if limits.max_in_flight is not None and self.in_flight[caller.id] >= limits.max_in_flight:
            self.metrics.refused.labels(reason="in_flight").inc()
            message = f"this key may have {limits.max_in_flight} requests and jobs at a time, and has them"
            raise ApiError(429, "too_many_in_flight", message, retry_after=1)
        if limits.requests_per_minute is None:
            return
        bucket = self._buckets.get(caller.id)
        if bucket is None or bucket.per_minute != limits.requests_per_minute:
            bucket = self._buckets[caller.id] = TokenBucket(limits.requests_per_minute)
        if wait := bucket.take(time.monotonic()):
            self.metrics.refused.labels(reason="rate").inc()
            message = f"this key may ask {limits.requests_per_minute:g} times a minute"
            raise ApiError(429, "rate_limit_exceeded", message, retry_after=wait)

    def open_stream(self, caller: Caller) -> Callable[[], None]:
        """Count a stream of a key; return what is to be called at its end. Raises `ApiError` 429."""
        if self.streams[caller.id] >= STREAMS:
            self.metrics.refused.labels(reason="streams").inc()
            message = f"this key may have {STREAMS} streams of events at a time, and has them"
            raise ApiError(429, "too_many_streams", message, retry_after=1)
        self.streams.begin(caller.id)
        return lambda: self.streams.end(caller.id)

    async def sweep(self) -> None:
        """Forget what has expired, again and again."""
        while True:
            now = time.time()
            try:
                await self.store.sweep(now)
                while await self.results.sweep(now):
                    pass
            except Exception as error:  # noqa: BLE001 - a store that is away now is back some day
                log(_log, logging.WARNING, "what has expired can't be removed now", error=str(error))
            await self.fleet.close_idle()
            await asyncio.sleep(SWEEP_SECONDS)

    async def drain(self) -> None:
        """Once the gateway is told to end, give what goes on some time; then what is unfinished is given up."""
        await self.stopping.wait()
        await asyncio.sleep(self.settings.drain_seconds)
        await self.fleet.close()


@asynccontextmanager
async def open_services(settings: Settings, stopping: asyncio.Event) -> AsyncIterator[Services]:
    """Open everything, and go on with what an earlier gateway left. Raises `DatabaseError` and `ConfigError`."""
    metrics, in_flight = Metrics(), InFlight()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.state_folder))
        results = Results(settings.results_url or default_url(settings.state_folder), database)
        fleet = Fleet(settings)
        stack.push_async_callback(fleet.close)
        store, keys = Store(database, settings.results_seconds), Keys(database)
        webhooks = Webhooks(
            store,
            keys,
            metrics,
            lambda job: show(job, None).model_dump(),
            networks=settings.webhook_networks,
            attempts=settings.webhook_attempts,
            retry_seconds=settings.webhook_retry_seconds,
        )
        stack.push_async_callback(webhooks.close)
        runner = Runner(store, results, fleet, in_flight, metrics, webhooks.wake)
        stack.push_async_callback(runner.close)
        services = Services(
            settings=settings,
            metrics=metrics,
            database=database,
            keys=keys,
            results=results,
            store=store,
            fleet=fleet,
            in_flight=in_flight,
            runner=runner,
            webhooks=webhooks,
            stopping=stopping,
        )
        if not settings.keys_needed:
            await keys.everybody(time.time())  # made now: to find it later is only to read
        await runner.resume()
        tasks = [asyncio.create_task(work()) for work in (services.sweep, services.drain)]
        try:
            yield services
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

"""The objects that the routes share, opened in order and closed in reverse order."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from imagegen_common.logs import log
from imagegen_gateway.client_pool import ClientPool, InFlightCounter
from imagegen_gateway.config import Settings
from imagegen_gateway.core.byte_budget import ByteBudget
from imagegen_gateway.core.job_limits import InputQueue, JobQuota
from imagegen_gateway.core.limits import TokenBucket
from imagegen_gateway.database import Database, open_database
from imagegen_gateway.errors import ApiError
from imagegen_gateway.image_store import ImageStore, default_url
from imagegen_gateway.jobs.inputs import JobInputs
from imagegen_gateway.jobs.runner import JobRunner
from imagegen_gateway.jobs.store import JobStore
from imagegen_gateway.jobs.view import to_response
from imagegen_gateway.keys import ApiKey, ApiKeyStore
from imagegen_gateway.metrics import Metrics
from imagegen_gateway.request_threads import KeySlots, RequestThreads
from imagegen_gateway.webhooks import WebhookSender

CLEANUP_SECONDS = 30.0
"""Interval at which expired data is deleted and idle connections are closed."""
MAX_STREAMS = 100
"""Maximum number of open event streams of one key."""
LISTS_PER_KEY = 2
"""Maximum number of requests of one key that read lists of jobs at the same time; further ones wait."""
BODIES_PER_KEY = 4
"""Maximum size of the bodies of one key's requests in flight, in bodies of the maximum length."""
BODIES = 12
"""Maximum size of the bodies of all requests in flight, in bodies of the maximum length."""
MIN_BYTES_PER_KEY = 32 * 1024**2
"""Minimum of both, as long responses count too."""
INPUTS_PER_KEY = 2
"""Maximum size of the input images of one key's running jobs, in bodies of the maximum length."""
INPUTS = 8
"""Maximum size of the input images of all running jobs, in bodies of the maximum length."""

_log = logging.getLogger("imagegen.gateway")


@dataclass(slots=True, kw_only=True)
class Services:
    """The shared objects of one gateway. They belong to one event loop."""

    settings: Settings
    metrics: Metrics
    database: Database
    api_keys: ApiKeyStore
    images: ImageStore
    job_store: JobStore
    clients: ClientPool
    in_flight: InFlightCounter
    body_bytes: ByteBudget
    """Memory of the bodies and long responses of requests in flight."""
    lists: KeySlots = field(default_factory=lambda: KeySlots(LISTS_PER_KEY))
    """Slots for requests that read many jobs."""
    threads: RequestThreads
    streams: InFlightCounter = field(default_factory=InFlightCounter)
    job_quota: JobQuota
    jobs: JobRunner
    webhooks: WebhookSender
    stopping: asyncio.Event
    """Set when the gateway shuts down, to end open event streams."""
    started: float = field(default_factory=time.time)
    _buckets: dict[str, TokenBucket] = field(default_factory=dict)

    def admit(self, api_key: ApiKey, *, repeated: bool = False) -> None:
        """Raise `ApiError` 429 if the key has reached its rate or its number of requests in flight.

        `repeated`: the request repeats one that created a job, and is not counted besides this job.
        """
        limits = api_key.limits
        full = limits.max_in_flight is not None and self.in_flight[api_key.id] >= limits.max_in_flight
        if full and not repeated:
            self.metrics.refusals.labels(reason="in_flight").inc()
            message = f"this key has its maximum of {limits.max_in_flight} requests and jobs in flight"
            raise ApiError(429, "too_many_in_flight", message, retry_after=1)
        if limits.requests_per_minute is None:
            return
        bucket = self._buckets.get(api_key.id)
        if bucket is None or bucket.per_minute != limits.requests_per_minute:
            bucket = self._buckets[api_key.id] = TokenBucket(limits.requests_per_minute)
        if wait := bucket.take(time.monotonic()):
            self.metrics.refusals.labels(reason="rate").inc()
            most = limits.requests_per_minute
            message = f"this key is limited to {most:g} image{'' if most == 1 else 's'} per minute"
            raise ApiError(429, "rate_limit_exceeded", message, retry_after=wait)

    def open_stream(self, api_key: ApiKey) -> Callable[[], None]:
        """Count an event stream of a key; return the function to call at its end. Raises `ApiError` 429."""
        if self.streams[api_key.id] >= MAX_STREAMS:
            self.metrics.refusals.labels(reason="streams").inc()
            message = f"this key has its maximum of {MAX_STREAMS} open event streams"
            raise ApiError(429, "too_many_streams", message, retry_after=1)
        self.streams.begin(api_key.id)
        return lambda: self.streams.end(api_key.id)

    def charge(self, api_key: ApiKey, images: int) -> None:
        """Count all images of an admitted request for the rate of its key; `admit` has counted the first."""
        if (bucket := self._buckets.get(api_key.id)) is not None:
            bucket.charge(images - 1)

    def rate(self, api_key: ApiKey) -> TokenBucket | None:
        """Return the rate limit of a key after its first request; None without one."""
        return None if api_key.limits.requests_per_minute is None else self._buckets.get(api_key.id)

    async def clean_up(self) -> None:
        """Delete expired jobs and images and close idle connections, every `CLEANUP_SECONDS`."""
        while True:
            now = time.time()
            try:
                await self.job_store.delete_expired(now)
                while await self.images.delete_expired(now):
                    pass
            except Exception as error:  # noqa: BLE001 - the storage may work again at the next interval
                log(_log, logging.WARNING, "expired data could not be deleted", error=str(error))
            await self.clients.close_idle()
            await asyncio.sleep(CLEANUP_SECONDS)

    async def drain(self) -> None:
        """Disconnect from the brokers `drain_timeout` after the shutdown has begun."""
        await self.stopping.wait()
        await asyncio.sleep(self.settings.drain_timeout)
        await self.clients.close()


def job_quota(settings: Settings) -> JobQuota:
    """Return the quota of jobs. Without keys, all users share one key, so only the total number is limited."""
    return JobQuota(
        max_jobs=settings.max_jobs,
        max_jobs_per_key=settings.max_jobs_per_key if settings.keys_required else settings.max_jobs,
        max_bytes_per_key=settings.max_job_bytes_per_key,
    )


@asynccontextmanager
async def open_services(settings: Settings, stopping: asyncio.Event) -> AsyncIterator[Services]:
    """Open all services and resume unfinished jobs. Raises `DatabaseError` and `ConfigError`."""
    metrics, in_flight = Metrics(), InFlightCounter()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.state_folder))
        images = ImageStore(settings.results_url or default_url(settings.state_folder), database)
        clients = ClientPool(settings)
        stack.push_async_callback(clients.close)
        job_store, api_keys = JobStore(database, settings.results_kept), ApiKeyStore(database)
        webhooks = WebhookSender(
            job_store,
            api_keys,
            metrics,
            lambda job: to_response(job, None).model_dump(),
            networks=settings.webhook_networks,
            attempts=settings.webhook_attempts,
            retry_seconds=settings.webhook_retry,
        )
        stack.push_async_callback(webhooks.close)
        longest = settings.max_body_bytes
        quota = job_quota(settings)
        inputs = JobInputs(images, InputQueue(per_key=INPUTS_PER_KEY * longest, total=INPUTS * longest))
        jobs = JobRunner(job_store, images, inputs, clients, quota, in_flight, metrics, webhooks.wake)
        stack.push_async_callback(jobs.close)
        threads = RequestThreads()
        stack.callback(threads.close)
        services = Services(
            settings=settings,
            metrics=metrics,
            database=database,
            api_keys=api_keys,
            images=images,
            job_store=job_store,
            clients=clients,
            in_flight=in_flight,
            body_bytes=ByteBudget(
                max(BODIES_PER_KEY * longest, MIN_BYTES_PER_KEY), max(BODIES * longest, MIN_BYTES_PER_KEY)
            ),
            threads=threads,
            job_quota=quota,
            jobs=jobs,
            webhooks=webhooks,
            stopping=stopping,
        )
        if not settings.keys_required:
            await api_keys.anonymous(time.time())  # created here, so that requests only read the database
        await jobs.resume()
        tasks = [asyncio.create_task(work()) for work in (services.clean_up, services.drain)]
        try:
            yield services
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

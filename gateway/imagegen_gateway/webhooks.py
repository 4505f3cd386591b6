"""Webhooks for ended jobs: signed, retried until they are accepted, sent only to allowed addresses."""

import asyncio
import json
import logging
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpcore2

from imagegen_common.logs import log
from imagegen_gateway.core.addresses import Network, is_allowed
from imagegen_gateway.core.signing import retry_delay, signature_headers
from imagegen_gateway.jobs.store import Job, JobStore
from imagegen_gateway.keys import ApiKeyStore
from imagegen_gateway.metrics import Metrics
from imagegen_gateway.restricted_backend import RestrictedBackend

_log = logging.getLogger("imagegen.gateway.webhooks")

TIMEOUT_SECONDS = 10.0
"""Timeout of one attempt, and of each of its phases."""
MAX_CONCURRENT = 32
"""Maximum number of concurrent attempts."""
SLOTS_PER_KEY = 4
"""Maximum number of concurrent attempts of one key. An attempt also lasts until its name lookup has ended."""
RETRY_SECONDS = 5.0
"""Pause after a failure of the database; later ones are twice as long."""
MAX_RETRY_SECONDS = 300.0
"""Maximum pause after failures of the database."""
GONE = 410
"""Status with which a receiver declines further attempts."""


class WebhookSender:
    """Sends due webhooks. They are in the database, so the next gateway process continues with them."""

    def __init__(
        self,
        store: JobStore,
        keys: ApiKeyStore,
        metrics: Metrics,
        payload: Callable[[Job], dict[str, Any]],
        *,
        networks: Sequence[Network],
        attempts: int,
        retry_seconds: float,
    ) -> None:
        """Start sending. `payload` returns a job as the API shows it.

        `attempts` is the maximum per webhook, `retry_seconds` the delay after the first failure.
        """
        self._store = store
        self._keys = keys
        self._metrics = metrics
        self._payload = payload
        self._max_attempts = attempts
        self._retry_seconds = retry_seconds
        self._networks = networks
        self._slots: Counter[str] = Counter()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._loop = asyncio.create_task(self._run(), name="webhooks")

    def wake(self) -> None:
        """Check now for due webhooks."""
        self._changed.set()

    async def close(self) -> None:
        """Stop sending; the next gateway process repeats interrupted attempts."""
        tasks = [self._loop, *self._sending.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            try:
                wait = await self._start_due(time.time())
            except Exception as error:  # noqa: BLE001 - the database may work again later
                self._metrics.storage_failures.inc()
                log(_log, logging.ERROR, "due webhooks could not be read", error=str(error))
                wait = RETRY_SECONDS
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._changed.wait()

    async def _start_due(self, now: float) -> float | None:
        """Start the due webhooks for which there are slots; return the seconds until the next one is due."""
        for job in await self._store.due_webhooks(now, 2 * SLOTS_PER_KEY):
            if len(self._sending) >= MAX_CONCURRENT:
                break
            if job.id not in self._sending and self._slots[job.owner] < SLOTS_PER_KEY:
                self._slots[job.owner] += 1
                self._sending[job.id] = asyncio.create_task(self._attempt(job), name=f"webhook of {job.id}")
        next_ = await self._store.next_webhook(now)
        return None if next_ is None else max(0.0, next_ - time.time())

    async def _attempt(self, job: Job) -> None:
        """Make one attempt and schedule the next one if it fails."""
        backend = RestrictedBackend(lambda address: is_allowed(address, self._networks))
        try:
            outcome = await self._send(job, backend)
            attempts = job.webhook_attempts + 1
            done = outcome == "delivered" or attempts >= self._max_attempts
            # Random, so that webhooks that fail together are not all retried together.
            wait = retry_delay(attempts, self._retry_seconds) * random.uniform(0.75, 1.25)
            self._metrics.webhooks.labels(outcome=outcome).inc()
            if outcome == "failed" and done:
                log(_log, logging.WARNING, "webhook abandoned", job=job.id, attempts=attempts)
            await self._schedule(job, attempts, None if done else time.time() + wait)
            await backend.settle()
        except sqlite3.Error as error:  # still due, so the next attempt follows the pause
            log(_log, logging.ERROR, "webhook could not be read", job=job.id, error=str(error))
            await asyncio.sleep(RETRY_SECONDS)
        except Exception:  # noqa: BLE001 - an error in one attempt must not stop the others
            _log.exception("webhook raised an unexpected error")
            await self._schedule(job, job.webhook_attempts + 1, None)
        finally:
            del self._sending[job.id]
            self._slots[job.owner] -= 1
            if not self._slots[job.owner]:
                del self._slots[job.owner]
            self._changed.set()

    async def _schedule(self, job: Job, attempts: int, next_: float | None) -> None:
        """Store the time of the next attempt, retrying until the database works; meanwhile no attempt is made."""
        wait = RETRY_SECONDS
        while True:
            try:
                await self._store.set_webhook(job.id, attempts, next_)
                return
            except sqlite3.Error as error:
                self._metrics.storage_failures.inc()
                log(_log, logging.ERROR, "webhook could not be stored", job=job.id, error=str(error))
                await asyncio.sleep(wait)
                wait = min(2 * wait, MAX_RETRY_SECONDS)

    async def _send(self, job: Job, backend: RestrictedBackend) -> str:
        """Send a webhook and return the outcome, one of `WEBHOOK_OUTCOMES`."""
        owner = await self._keys.by_id(job.owner)
        assert owner is not None, "keys are never deleted"
        assert job.webhook_url is not None, "only jobs with a webhook are due"
        now = int(time.time())
        event = {"type": f"job.{job.state}", "timestamp": now, "data": self._payload(job)}
        body = json.dumps(event)
        headers: dict[bytes | str, bytes | str] = {
            "content-type": "application/json",
            "user-agent": "imagegen-gateway",
        }
        headers.update(signature_headers(owner.webhook_secret, f"evt_{job.id}", now, body).items())
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), TIMEOUT_SECONDS)
        try:
            async with (
                asyncio.timeout(TIMEOUT_SECONDS),
                httpcore2.AsyncConnectionPool(network_backend=backend) as pool,
                pool.stream(
                    "POST",
                    job.webhook_url,
                    headers=headers,
                    content=body.encode(),
                    extensions={"timeout": timeout},
                ) as response,
            ):
                status = response.status
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            OSError,
        ) as error:
            log(_log, logging.INFO, "webhook failed", job=job.id, error=str(error) or type(error).__name__)
            return "failed"
        if 200 <= status < 300 or status == GONE:
            return "delivered"
        log(_log, logging.INFO, "webhook failed", job=job.id, status=status)
        return "failed"

"""Webhooks for ended jobs: signed, retried until they are accepted, sent only to allowed addresses."""

import asyncio
import ipaddress
import json
import logging
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import httpcore2

from imagegen_common.logs import log
from imagegen_gateway.core.addresses import Network, is_allowed
from imagegen_gateway.core.signing import retry_delay, signature_headers
from imagegen_gateway.jobs.store import Job, JobStore
from imagegen_gateway.keys import ApiKeyStore
from imagegen_gateway.metrics import Metrics

_log = logging.getLogger("imagegen.gateway.webhooks")

TIMEOUT_SECONDS = 10.0
"""Timeout of one attempt, and of each of its phases."""
MAX_CONCURRENT = 32
"""Maximum number of concurrent attempts."""
GONE = 410
"""Status with which a receiver declines further attempts."""


class RestrictedBackend(httpcore2.AsyncNetworkBackend):
    """A network backend that resolves a host and connects only to its allowed addresses."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = networks
        self._inner = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve the host and connect. Raises `httpcore2.ConnectError` if no address is allowed."""
        try:
            loop = asyncio.get_running_loop()
            entries = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} can't be resolved: {error}") from error
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in entries]
        allowed = [address for address in addresses if is_allowed(address, self._networks)]
        if not allowed:
            found = ", ".join(dict.fromkeys(map(str, addresses)))
            raise httpcore2.ConnectError(f"no address of {host} is allowed ({found}); see --webhook-allow")
        return await self._inner.connect_tcp(
            str(allowed[0]), port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )

    async def sleep(self, seconds: float) -> None:
        """Sleep for some seconds."""
        await self._inner.sleep(seconds)


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
        self._pool = httpcore2.AsyncConnectionPool(
            network_backend=RestrictedBackend(networks), max_connections=MAX_CONCURRENT
        )
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
        await self._pool.aclose()

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            now = time.time()
            for job in await self._store.due_webhooks(now, 2 * MAX_CONCURRENT):
                if job.id not in self._sending and len(self._sending) < MAX_CONCURRENT:
                    self._sending[job.id] = asyncio.create_task(self._attempt(job), name=f"webhook of {job.id}")
            next_ = await self._store.next_webhook(now)
            try:
                async with asyncio.timeout(None if next_ is None else max(0.0, next_ - time.time())):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _attempt(self, job: Job) -> None:
        """Make one attempt and schedule the next one if it fails."""
        try:
            outcome = await self._send(job)
            attempts = job.webhook_attempts + 1
            done = outcome == "delivered" or attempts >= self._max_attempts
            # Random, so that webhooks that fail together are not all retried together.
            wait = retry_delay(attempts, self._retry_seconds) * random.uniform(0.75, 1.25)
            await self._store.set_webhook(job.id, attempts, None if done else time.time() + wait)
            self._metrics.webhooks.labels(outcome=outcome).inc()
            if outcome == "failed" and done:
                log(_log, logging.WARNING, "webhook abandoned", job=job.id, attempts=attempts)
        except Exception:  # noqa: BLE001 - an error in one attempt must not stop the others
            _log.exception("webhook raised an unexpected error")
            await self._store.set_webhook(job.id, job.webhook_attempts + 1, None)
        finally:
            del self._sending[job.id]
            self._changed.set()

    async def _send(self, job: Job) -> str:
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
                self._pool.stream(
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

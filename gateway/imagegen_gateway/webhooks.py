"""Tells of jobs that have ended: signed, again until it is taken, and only where the operator lets it go."""

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

SECONDS = 10.0
"""How long a call may take, and each of its parts."""
AT_A_TIME = 32
GONE = 410
"""With this status a receiver says that it wants no more."""


class RestrictedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to the addresses of a host that may be reached; what was checked is what is dialled."""

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
        """Look the host up and connect. Raises `httpcore2.ConnectError`."""
        try:
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore2.ConnectError(f"{host} can't be looked up: {error}") from error
        addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
        reachable = [address for address in addresses if is_allowed(address, self._networks)]
        if not reachable:
            shown = ", ".join(dict.fromkeys(map(str, addresses)))
            raise httpcore2.ConnectError(f"{host} is {shown}, where webhooks may not go (--webhook-allow)")
        return await self._inner.connect_tcp(
            str(reachable[0]), port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )

    async def sleep(self, seconds: float) -> None:
        """As the inner one."""
        await self._inner.sleep(seconds)


class WebhookSender:
    """Calls what is due, until it is closed. Due calls are in the database: a new gateway goes on with them."""

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
        """`payload` returns a job as the API shows it; `retry_seconds`: the wait after the first failure."""
        self._store = store
        self._keys = keys
        self._metrics = metrics
        self._payload = payload
        self._attempts = attempts
        self._retry_seconds = retry_seconds
        self._pool = httpcore2.AsyncConnectionPool(
            network_backend=RestrictedBackend(networks), max_connections=AT_A_TIME
        )
        self._calling: dict[str, asyncio.Task[None]] = {}
        self._news = asyncio.Event()
        self._loop = asyncio.create_task(self._run(), name="webhooks")

    def wake(self) -> None:
        """Look now: something may be due."""
        self._news.set()

    async def close(self) -> None:
        """Stop; what was being called is called again by the next gateway."""
        tasks = [self._loop, *self._calling.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._pool.aclose()

    async def _run(self) -> None:
        while True:
            self._news.clear()
            now = time.time()
            for job in await self._store.due_webhooks(now, 2 * AT_A_TIME):
                if job.id not in self._calling and len(self._calling) < AT_A_TIME:
                    self._calling[job.id] = asyncio.create_task(self._call(job), name=f"webhook of {job.id}")
            next_ = await self._store.next_webhook(now)
            try:
                async with asyncio.timeout(None if next_ is None else max(0.0, next_ - time.time())):
                    await self._news.wait()
            except TimeoutError:
                pass

    async def _call(self, job: Job) -> None:
        try:
            outcome = await self._deliver(job)
            attempts = job.webhook_attempts + 1
            done = outcome == "delivered" or attempts >= self._attempts
            # Spread, so that what failed together does not come back together.
            wait = retry_delay(attempts, self._retry_seconds) * random.uniform(0.75, 1.25)
            await self._store.set_webhook(job.id, attempts, None if done else time.time() + wait)
            self._metrics.webhooks.labels(outcome=outcome).inc()
            if outcome == "failed" and done:
                log(_log, logging.WARNING, "webhook given up", job=job.id, attempts=attempts)
        except Exception:  # noqa: BLE001 - one bad call must not end the others
            _log.exception("a webhook could not be called")
            await self._store.set_webhook(job.id, job.webhook_attempts + 1, None)
        finally:
            del self._calling[job.id]
            self._news.set()

    async def _deliver(self, job: Job) -> str:
        owner = await self._keys.by_id(job.owner)
        assert owner is not None, "keys are never deleted"
        assert job.webhook_url is not None, "only such jobs are due"
        now = int(time.time())
        event = {"type": f"job.{job.state}", "timestamp": now, "data": self._payload(job)}
        body = json.dumps(event).encode()
        headers: dict[bytes | str, bytes | str] = {
            "content-type": "application/json",
            "user-agent": "imagegen-gateway",
        }
        headers.update(signature_headers(owner.webhook_secret, f"evt_{job.id}", now, body).items())
        timeout = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS)
        try:
            async with (
                asyncio.timeout(SECONDS),
                self._pool.stream(
                    "POST", job.webhook_url, headers=headers, content=body, extensions={"timeout": timeout}
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

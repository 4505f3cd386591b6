"""Connections to hosts that users or workers name: allowed addresses only; lookups run in threads of their own."""

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any

import httpcore2

from imagegen_gateway.core.addresses import Address


class RestrictedBackend(httpcore2.AsyncNetworkBackend):
    """The network of one HTTP request: it resolves a host and connects only to its allowed addresses."""

    def __init__(self, is_allowed: Callable[[Address], bool]) -> None:
        self._is_allowed = is_allowed
        self._inner = httpcore2.AnyIOBackend()
        self._lookups: list[asyncio.Future[list[Address]]] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve the host and connect. Raises `httpcore2.ConnectError` if no address is allowed."""
        lookup = asyncio.wrap_future(_look_up(host, port))
        self._lookups.append(lookup)
        try:
            addresses = await asyncio.shield(lookup)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} can't be resolved: {error}") from error
        allowed = [address for address in addresses if self._is_allowed(address)]
        if not allowed:
            found = ", ".join(dict.fromkeys(map(str, addresses)))
            raise httpcore2.ConnectError(f"no address of {host} is allowed ({found})")
        return await self._inner.connect_tcp(
            str(allowed[0]), port, timeout=timeout, local_address=local_address, socket_options=socket_options
        )

    async def sleep(self, seconds: float) -> None:
        """Sleep for some seconds."""
        await self._inner.sleep(seconds)

    async def settle(self) -> None:
        """Wait until all name lookups of this request have ended; after a timeout they still run."""
        await asyncio.gather(*self._lookups, return_exceptions=True)


def _look_up(host: str, port: int) -> Future[list[Address]]:
    """Resolve a host in a new thread; a name server may take half a minute, and a lookup can't be stopped.

    The callers limit the number of threads. They are daemons, so that the process can exit meanwhile.
    """
    future: Future[list[Address]] = Future()

    def run() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            addresses = [ipaddress.ip_address(entry[4][0]) for entry in entries]
        except Exception as error:  # noqa: BLE001 - raised in the caller
            future.set_exception(error)
        else:
            future.set_result(addresses)

    future.set_running_or_notify_cancel()
    threading.Thread(target=run, name="lookup", daemon=True).start()
    return future

"""Resolution of host names in threads of its own, so that a slow name server delays nothing else."""

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpcore2

from imagegen_gateway.core.addresses import Address, Network

IsAllowed = Callable[[Address, Sequence[Network]], bool]


class Resolver:
    """Resolves host names in a fixed number of threads. A lookup can't be stopped, so it may outlive its caller."""

    def __init__(self, threads: int) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def resolve(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a host. Raises `httpcore2.ConnectError`."""
        loop = asyncio.get_running_loop()
        try:
            entries = await loop.run_in_executor(self._executor, _look_up, host, port)
        except (OSError, UnicodeError) as error:
            raise httpcore2.ConnectError(f"{host} can't be resolved: {error}") from error
        return [ipaddress.ip_address(entry[4][0].partition("%")[0]) for entry in entries]

"""Memory and temperature of GPUs, as the metrics of their workers tell them."""

import asyncio
import time
from collections.abc import Iterable, Mapping

import httpcore2
from prometheus_client.parser import text_string_to_metric_families

from imagegen_client import GpuStatistics

EVERY_SECONDS = 5.0
PATIENCE_SECONDS = 2.0
MAX_BYTES = 1024**2
_PREFIX = "imagegen_worker_gpu_"
_TOLD = ("memory_used_bytes", "memory_total_bytes", "temperature_celsius")

Readings = Mapping[str, float]


class CardReadings:
    """Asks workers that serve metrics, now and then; those that can't be reached tell nothing."""

    def __init__(self) -> None:
        self._asked: float | None = None
        self._told: dict[str, Readings] = {}
        self._asking: asyncio.Task[None] | None = None

    def of(self, worker: str) -> Readings:
        """Return what a worker told last: bytes, and degrees Celsius."""
        return self._told.get(worker, {})

    def refresh(self, rows: Iterable[GpuStatistics]) -> None:
        """Begin to ask the workers of `per_gpu_stats`, unless that was done a moment ago."""
        now = time.monotonic()
        if self._asked is not None and now - self._asked < EVERY_SECONDS:
            return
        if self._asking is not None and not self._asking.done():
            return
        self._asked = now
        addresses = {row.worker: row.http for row in rows if row.http}
        self._asking = asyncio.create_task(self._ask(addresses), name="card readings")

    async def close(self) -> None:
        """Ask no more."""
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)

    async def _ask(self, addresses: Mapping[str, str]) -> None:
        async with httpcore2.AsyncConnectionPool(max_connections=16) as pool:
            told = await asyncio.gather(*(_ask_one(pool, *one) for one in addresses.items()))
        self._told = dict(zip(addresses, told, strict=True))


async def _ask_one(pool: httpcore2.AsyncConnectionPool, worker: str, address: str) -> Readings:
    text = bytearray()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS), pool.stream("GET", f"http://{address}/metrics") as response:
            async for part in response.aiter_stream():
                text += part
                if len(text) > MAX_BYTES:
                    return {}
        return parse(text.decode(), worker)
    except (TimeoutError, OSError, ValueError, httpcore2.NetworkError, httpcore2.ProtocolError):
        return {}


def parse(text: str, worker: str) -> Readings:
    """Return what metrics tell of a worker's GPU. Raises `ValueError` for a text that is none."""
    # The rest is long, and reading it would hold up everybody.
    lines = [line for line in text.splitlines() if line.startswith(_PREFIX)]
    samples = [one for family in text_string_to_metric_families("\n".join(lines) + "\n") for one in family.samples]
    found = {one.name.removeprefix(_PREFIX): one.value for one in samples if one.labels.get("worker") == worker}
    return {name: found[name] for name in _TOLD if name in found}

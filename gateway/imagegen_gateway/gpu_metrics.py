"""GPU memory and temperature, read from the Prometheus metrics of the workers."""

import asyncio
import time
from collections.abc import Iterable, Mapping

import httpcore2
from prometheus_client.parser import text_string_to_metric_families

from imagegen_client import GpuStatistics

INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 2.0
MAX_BYTES = 1024**2
_PREFIX = "imagegen_worker_gpu_"
_NAMES = ("memory_used_bytes", "memory_total_bytes", "temperature_celsius")

GpuMetrics = Mapping[str, float]


class GpuMetricsReader:
    """The latest GPU metrics of each worker; empty for workers that can't be reached or serve no metrics."""

    def __init__(self) -> None:
        self._requested: float | None = None
        self._metrics: dict[str, GpuMetrics] = {}
        self._task: asyncio.Task[None] | None = None

    def get(self, worker: str) -> GpuMetrics:
        """Return the latest metrics of a worker: bytes and degrees Celsius."""
        return self._metrics.get(worker, {})

    def refresh(self, rows: Iterable[GpuStatistics]) -> None:
        """Start reading the metrics of all workers in `rows`, at most every `INTERVAL_SECONDS`."""
        now = time.monotonic()
        if self._requested is not None and now - self._requested < INTERVAL_SECONDS:
            return
        if self._task is not None and not self._task.done():
            return
        self._requested = now
        addresses = {row.worker: row.http for row in rows if row.http}
        self._task = asyncio.create_task(self._read(addresses), name="GPU metrics")

    async def close(self) -> None:
        """Cancel a running refresh."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, addresses: Mapping[str, str]) -> None:
        async with httpcore2.AsyncConnectionPool(max_connections=16) as pool:
            found = await asyncio.gather(*(_read_worker(pool, *item) for item in addresses.items()))
        self._metrics = dict(zip(addresses, found, strict=True))


async def _read_worker(pool: httpcore2.AsyncConnectionPool, worker: str, address: str) -> GpuMetrics:
    text = bytearray()
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS), pool.stream("GET", f"http://{address}/metrics") as response:
            async for part in response.aiter_stream():
                text += part
                if len(text) > MAX_BYTES:
                    return {}
        return parse(text.decode(), worker)
    except (TimeoutError, OSError, ValueError, httpcore2.NetworkError, httpcore2.ProtocolError):
        return {}


def parse(text: str, worker: str) -> GpuMetrics:
    """Return the GPU metrics of a worker from Prometheus text. Raises `ValueError` for malformed text."""
    # Parsing all metrics would block the event loop for too long.
    lines = [line for line in text.splitlines() if line.startswith(_PREFIX)]
    samples = [
        sample for family in text_string_to_metric_families("\n".join(lines) + "\n") for sample in family.samples
    ]
    found = {s.name.removeprefix(_PREFIX): s.value for s in samples if s.labels.get("worker") == worker}
    return {name: found[name] for name in _NAMES if name in found}

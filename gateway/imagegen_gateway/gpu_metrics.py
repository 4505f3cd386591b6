"""GPU memory and temperature, read from the Prometheus metrics of the workers."""

import asyncio
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

import httpcore2
from prometheus_client.parser import text_string_to_metric_families

from imagegen_client import GpuStatistics
from imagegen_gateway.core.addresses import Network, is_within
from imagegen_gateway.restricted_backend import RestrictedBackend
from imagegen_protocol.endpoints import parse_address

INTERVAL_SECONDS = 5.0
TIMEOUT_SECONDS = 2.0
MAX_BYTES = 1024**2
_PREFIX = "imagegen_worker_gpu_"
_NAMES = ("memory_used_bytes", "memory_total_bytes", "temperature_celsius")
_STARTS = tuple(_PREFIX + name for name in _NAMES)
MAX_LINES = 200
"""Maximum number of lines that are parsed: three for each GPU of a host."""
MAX_LINE = 500
"""Maximum number of characters of a line that is parsed; the parser needs 7 s for a megabyte of quotes."""
MAX_CONCURRENT = 16
"""Maximum number of workers that are read at the same time."""

GpuMetrics = Mapping[str, float]


class GpuMetricsReader:
    """The latest GPU metrics of each worker; empty for workers that can't be reached or serve no metrics."""

    def __init__(self, networks: Sequence[Network] = ()) -> None:
        """Create a reader that connects only to addresses in `networks`, even if a worker reports another one."""
        self._networks = networks
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
        slots = asyncio.Semaphore(MAX_CONCURRENT)
        found = await asyncio.gather(*(self._read_worker(slots, *item) for item in addresses.items()))
        self._metrics = dict(zip(addresses, found, strict=True))

    async def _read_worker(self, slots: asyncio.Semaphore, worker: str, address: str) -> GpuMetrics:
        """Return the metrics of a worker; empty if it can't be reached or is not in an allowed network."""
        async with slots:
            backend = RestrictedBackend(lambda found: is_within(found, self._networks))
            try:
                return parse(await _fetch(backend, address), worker)
            except (OSError, ValueError, httpcore2.NetworkError, httpcore2.ProtocolError):
                return {}
            finally:
                await backend.settle()


async def _fetch(backend: RestrictedBackend, address: str) -> str:
    """Return the metrics at an address as text. Raises `ValueError` if they are longer than `MAX_BYTES`."""
    host, port = parse_address(address)
    # From its parts, as a worker must not choose the path.
    url = httpcore2.URL(scheme=b"http", host=host.encode("ascii"), port=port, target=b"/metrics")
    text = bytearray()
    async with (
        asyncio.timeout(TIMEOUT_SECONDS),
        httpcore2.AsyncConnectionPool(network_backend=backend) as pool,
        pool.stream("GET", url) as response,
    ):
        async for part in response.aiter_stream():
            text += part
            if len(text) > MAX_BYTES:
                raise ValueError(f"expected at most {MAX_BYTES} bytes")
    return text.decode()


def parse(text: str, worker: str) -> GpuMetrics:
    """Return the GPU metrics of a worker from Prometheus text. Raises `ValueError` for malformed text."""
    # Parsing all metrics would block the event loop for too long.
    found_lines = (line for line in text.splitlines() if line.startswith(_STARTS) and len(line) <= MAX_LINE)
    lines = list(islice(found_lines, MAX_LINES))
    samples = [
        sample for family in text_string_to_metric_families("\n".join(lines) + "\n") for sample in family.samples
    ]
    found = {s.name.removeprefix(_PREFIX): s.value for s in samples if s.labels.get("worker") == worker}
    return {name: found[name] for name in _NAMES if math.isfinite(found.get(name, math.nan))}

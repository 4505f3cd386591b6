"""Memory and temperature, read from the metrics of workers."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from imagegen_gateway.gpu_metrics import MAX_BYTES, GpuMetricsReader, parse
from tests.statistics import gpu_statistics

METRICS = """\
# HELP imagegen_worker_gpu_memory_used_bytes Memory in use, by anybody.
# TYPE imagegen_worker_gpu_memory_used_bytes gauge
imagegen_worker_gpu_memory_used_bytes{gpu="0",worker="gpu0"} 2.147483648e+09
imagegen_worker_gpu_memory_used_bytes{gpu="1",worker="gpu1"} 1.0
imagegen_worker_gpu_temperature_celsius{gpu="0",worker="gpu0"} 61.0
imagegen_worker_gpu_power_watts{gpu="0",worker="gpu0"} 250.0
imagegen_worker_requests_total{outcome="ok"} 7.0
"""


def test_the_workers_own_readings_are_taken():
    assert parse(METRICS, "gpu0") == {"memory_used_bytes": 2 * 1024**3, "temperature_celsius": 61.0}


def test_a_worker_without_a_gpu_tells_nothing():
    assert parse("imagegen_worker_requests_total 7.0\n", "gpu0") == {}


def test_what_is_no_metrics_is_an_error():
    with pytest.raises(ValueError, match="float"):
        parse("imagegen_worker_gpu_memory_used_bytes{gpu=\n", "gpu0")


@asynccontextmanager
async def serving(body):
    """Answer every request with these bytes; yields the address and the requests."""
    asked = []

    async def serve(reader, writer):
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", asked


async def refreshed(readings, rows):
    """Ask, and wait for the answers."""
    readings.refresh(rows)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "card readings"))


def test_workers_are_asked_at_once_and_not_again_a_moment_later():
    async def run():
        readings = GpuMetricsReader()
        async with serving(METRICS.encode()) as (address, asked):
            rows = [gpu_statistics(worker="gpu0", http=address), gpu_statistics(worker="quiet", http=None)]
            await refreshed(readings, rows)
            await refreshed(readings, rows)
        await readings.close()
        return readings, asked

    readings, asked = asyncio.run(run())
    assert readings.of("gpu0")["temperature_celsius"] == 61.0
    assert readings.of("quiet") == {}
    assert len(asked) == 1
    assert asked[0].startswith(b"GET /metrics ")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"imagegen_worker_gpu_x{", b"#" * (MAX_BYTES + 1)])
def test_a_worker_that_answers_nonsense_tells_nothing(body):
    async def run():
        readings = GpuMetricsReader()
        async with serving(body) as (address, _):
            await refreshed(readings, [gpu_statistics(worker="gpu0", http=address)])
        return readings.of("gpu0")

    assert asyncio.run(run()) == {}


def test_a_worker_that_can_not_be_reached_tells_nothing():
    async def run():
        readings = GpuMetricsReader()
        async with serving(b"") as (address, _):
            pass
        await refreshed(readings, [gpu_statistics(worker="gpu0", http=address)])
        return readings.of("gpu0")

    assert asyncio.run(run()) == {}

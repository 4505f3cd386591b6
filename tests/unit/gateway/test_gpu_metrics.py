"""GPU metrics of workers."""

import asyncio
import ipaddress
from contextlib import asynccontextmanager

import pytest

from imagegen_gateway.gpu_metrics import MAX_BYTES, MAX_LINE, MAX_LINES, GpuMetricsReader, parse
from tests.statistics import gpu_statistics

LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
METRICS = """\
# HELP imagegen_worker_gpu_memory_used_bytes Memory in use.
# TYPE imagegen_worker_gpu_memory_used_bytes gauge
imagegen_worker_gpu_memory_used_bytes{gpu="0",worker="gpu0"} 2.147483648e+09
imagegen_worker_gpu_memory_used_bytes{gpu="1",worker="gpu1"} 1.0
imagegen_worker_gpu_temperature_celsius{gpu="0",worker="gpu0"} 61.0
imagegen_worker_gpu_power_watts{gpu="0",worker="gpu0"} 250.0
imagegen_worker_requests_total{outcome="ok"} 7.0
"""


def test_the_metrics_of_one_worker_are_parsed():
    assert parse(METRICS, "gpu0") == {"memory_used_bytes": 2 * 1024**3, "temperature_celsius": 61.0}


def test_a_worker_without_a_gpu_has_no_metrics():
    assert parse("imagegen_worker_requests_total 7.0\n", "gpu0") == {}


def test_malformed_metrics_are_an_error():
    with pytest.raises(ValueError, match="float"):
        parse("imagegen_worker_gpu_memory_used_bytes{gpu=\n", "gpu0")


@pytest.mark.parametrize("length", [MAX_LINE, MAX_LINE + 1])
def test_long_lines_are_not_parsed(length):
    start, end = 'imagegen_worker_gpu_temperature_celsius{worker="gpu0",a="', '"} 61.0'
    line = start + "x" * (length - len(start) - len(end)) + end
    assert parse(line, "gpu0") == ({"temperature_celsius": 61.0} if length == MAX_LINE else {})


@asynccontextmanager
async def serving(body):
    """Serve this body at a local address; yield the address and the list of received requests."""
    requests = []

    async def serve(reader, writer):
        requests.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}", requests


async def refresh(reader, rows):
    """Refresh the metrics, and wait until the refresh has ended."""
    reader.refresh(rows)
    await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == "GPU metrics"))


def test_workers_are_queried_at_most_once_per_interval():
    async def run():
        reader = GpuMetricsReader(LOOPBACK)
        async with serving(METRICS.encode()) as (address, requests):
            rows = [gpu_statistics(worker="gpu0", http=address), gpu_statistics(worker="quiet", http=None)]
            await refresh(reader, rows)
            await refresh(reader, rows)
        await reader.close()
        return reader, requests

    reader, requests = asyncio.run(run())
    assert reader.get("gpu0")["temperature_celsius"] == 61.0
    assert reader.get("quiet") == {}
    assert len(requests) == 1
    assert requests[0].startswith(b"GET /metrics ")


@pytest.mark.parametrize("body", [b"\xff\xfe", b"imagegen_worker_gpu_x{", b"#" * (MAX_BYTES + 1)])
def test_a_worker_with_malformed_metrics_has_none(body):
    async def run():
        reader = GpuMetricsReader(LOOPBACK)
        async with serving(body) as (address, _):
            await refresh(reader, [gpu_statistics(worker="gpu0", http=address)])
        return reader.get("gpu0")

    assert asyncio.run(run()) == {}


def test_an_unreachable_worker_has_no_metrics():
    async def run():
        reader = GpuMetricsReader(LOOPBACK)
        async with serving(b"") as (address, _):
            pass
        await refresh(reader, [gpu_statistics(worker="gpu0", http=address)])
        return reader.get("gpu0")

    assert asyncio.run(run()) == {}


@pytest.mark.parametrize("networks", [(), (ipaddress.ip_network("10.0.0.0/8"),)])
def test_a_worker_outside_the_networks_is_not_connected_to(networks):
    async def run():
        reader = GpuMetricsReader(networks)
        async with serving(METRICS.encode()) as (address, requests):
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
                stated = f"{host}:{address.rpartition(':')[2]}"
                await reader._read({"gpu0": stated})
        return reader.get("gpu0"), requests

    assert asyncio.run(run()) == ({}, [])


def test_a_worker_can_not_choose_the_path():
    async def run():
        reader = GpuMetricsReader(LOOPBACK)
        async with serving(METRICS.encode()) as (address, requests):
            port = address.rpartition(":")[2]
            for host in ("localhost/shutdown", "127.0.0.1/?", "127.0.0.1#", "user@127.0.0.1", "127.0.0.1\r\nX"):
                await reader._read({"gpu0": f"{host}:{port}"})
        return reader.get("gpu0"), requests

    assert asyncio.run(run()) == ({}, [])


def test_very_many_and_non_finite_metrics_are_not_taken():
    line = 'imagegen_worker_gpu_temperature_celsius{worker="gpu0"}'
    assert parse(f"{line} NaN\n", "gpu0") == {}
    other = 'imagegen_worker_gpu_memory_used_bytes{worker="other"} 1\n'
    assert parse(MAX_LINES * other + f"{line} 1\n", "gpu0") == {}

"""Input images of queued jobs are on disk, not in memory."""

import base64
import os
import zlib

import psutil
import pytest

IMAGE_BYTES = 10 * 1000**2
JOBS = 30
MAX_BODY = 16 * 1024**2
"""The images of one key's running jobs have at most twice this size in memory."""


@pytest.fixture
def lonely(fleet):
    """The client endpoint of a broker without a worker: jobs wait there."""
    yield fleet.start_broker(name="lonely").frontend
    fleet.terminate("lonely")
    del fleet.brokers["lonely"]


def large_image():
    """Return a PNG of 8x8 pixels with a large chunk of no meaning."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = chunk(b"IHDR", b"\0\0\0\x08\0\0\0\x08\x08\0\0\0\0")
    pixels = chunk(b"IDAT", zlib.compress(8 * (9 * b"\0")))
    padding = chunk(b"teSt", os.urandom(IMAGE_BYTES))
    return b"\x89PNG\r\n\x1a\n" + header + padding + pixels + chunk(b"IEND", b"")


def memory(fleet, gateway):
    return psutil.Process(fleet.processes[gateway.name].pid).memory_info().rss


def test_queued_jobs_do_not_hold_their_images_in_memory(fleet, start_gateway, lonely):
    gateway = start_gateway("--broker", lonely, "--max-body-bytes", str(MAX_BODY))
    before = memory(fleet, gateway)
    image = base64.b64encode(large_image()).decode()
    for number in range(JOBS):
        gateway.job(prompt=f"number {number}", image=image)
    after = memory(fleet, gateway)
    gateway.restart()
    listed = gateway.http.get("/v1/jobs", params={"limit": 100}).json()["data"]
    assert [job["state"] for job in listed] == JOBS * ["queued"]
    resumed = memory(fleet, gateway)
    print(f"MB before: {before / 1e6:.0f}, {JOBS} jobs: {after / 1e6:.0f}, after the restart: {resumed / 1e6:.0f}")
    assert after - before < JOBS * IMAGE_BYTES / 2
    assert resumed - before < JOBS * IMAGE_BYTES / 2

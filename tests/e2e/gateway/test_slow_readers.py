"""Clients that do not read their responses."""

import os
import socket
from contextlib import ExitStack

import psutil
import pytest

LARGE = 20 * 1024**2
CONNECTIONS = 40


@pytest.fixture
def path(gateway):
    """The path of a large image."""
    url = gateway.wait(gateway.job(prompt="x")["id"])["images"][0]["url"]
    name = url.rpartition("/")[2]
    (gateway.folder / "results" / name).write_bytes(os.urandom(LARGE))
    return f"/v1/files/{name}"


def request(gateway, path):
    """Request a file and read one byte of the response."""
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    connection.connect((host, int(port)))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    assert connection.recv(1) == b"H"
    return connection


def in_flight(gateway):
    name = "imagegen_gateway_requests_in_flight "
    lines = gateway.http.get("/metrics").text.splitlines()
    return next(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_large_images_are_not_held_in_memory_for_slow_readers_which_are_disconnected(fleet, gateway, path):
    process = psutil.Process(fleet.processes[gateway.name].pid)
    assert len(gateway.http.get(path).content) == LARGE
    before = process.memory_info().rss
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(request(gateway, path))
        assert in_flight(gateway) == CONNECTIONS + 1
        growth = process.memory_info().rss - before
        print(f"{CONNECTIONS} slow readers of {LARGE / 1e6:.0f} MB: {growth / 1e6:.1f} MB")
        assert growth < 4 * LARGE
        fleet.wait_until(lambda: in_flight(gateway) == 1, "the end of all slow responses")

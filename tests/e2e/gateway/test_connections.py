"""Limits on connections and slow clients."""

import re
import socket
import time
from contextlib import ExitStack

import httpx2
import pytest

from tests.e2e.gateway.conftest import Gateway
from tests.waiting import wait_until

MAX_CONNECTIONS = 5
GET = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """One gateway for all tests of this file, with few connections."""
    gateway = Gateway(
        fleet, "gateway", tmp_path_factory.mktemp("state"), ("--max-connections", str(MAX_CONNECTIONS))
    )
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


def connect(gateway, data=b""):
    """Open a connection and send some bytes."""
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(data)
    return connection


def is_answered(gateway):
    """Send a request; return whether there is any response."""
    try:
        with connect(gateway, GET + b"\r\n") as connection:
            return bool(connection.recv(1))
    except OSError:
        return False


def read_all(connection):
    """Read until the gateway closes the connection."""
    text = b""
    while part := connection.recv(65536):
        text += part
    return text


def read_one(connection):
    """Read one whole response; the connection stays open."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += receive(connection)
    head, _, body = text.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
    while len(body) < length:
        body += receive(connection)


def receive(connection):
    """Return further bytes of a response."""
    part = connection.recv(65536)
    assert part, "the gateway closed the connection within a response"
    return part


def wait_until_free(gateway):
    """Wait until the gateway has closed the connections of earlier tests."""
    wait_until(lambda: serves_all(gateway), f"{MAX_CONNECTIONS} connections are served")


def serves_all(gateway):
    """Return whether the maximum number of connections is served; the gateway closes each of them."""
    try:
        with ExitStack() as stack:
            peers = [stack.enter_context(connect(gateway, GET)) for _ in range(MAX_CONNECTIONS)]
            for peer in peers:
                peer.sendall(b"Connection: close\r\n\r\n")
            return all(read_all(peer).startswith(b"HTTP/1.1 200 ") for peer in peers)
    except OSError:
        return False


def test_requests_beyond_the_maximum_get_503_and_probes_are_answered(gateway):
    gateway.close()
    with ExitStack() as stack:
        # Each request is incomplete, so that the gateway waits for the rest.
        waiting = [stack.enter_context(connect(gateway, GET)) for _ in range(MAX_CONNECTIONS)]
        late = httpx2.get(f"{gateway.url}/v1/models", trust_env=False)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "too_many_connections")
        assert late.headers["Retry-After"] == "2"
        assert late.headers["Connection"] == "close"
        assert httpx2.get(f"{gateway.url}/healthz", trust_env=False).status_code == 200
        waiting.pop().close()
        wait_until(
            lambda: httpx2.get(f"{gateway.url}/v1/models", trust_env=False).status_code != 503,
            "a closed connection leaves its place to another",
        )


def test_connections_far_beyond_the_maximum_are_closed(gateway):
    gateway.close()
    with ExitStack() as stack:
        for _ in range(MAX_CONNECTIONS + 64):
            stack.enter_context(connect(gateway, GET))
        wait_until(lambda: not is_answered(gateway), "connections far beyond the maximum are closed")
    assert httpx2.get(f"{gateway.url}/healthz", trust_env=False).status_code == 200


def test_long_headers_are_rejected(gateway):
    with connect(gateway, GET + b"X-Long: " + b"a" * 100_000) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_incomplete_requests_are_closed_and_waiting_clients_are_not(gateway):
    """All at the same time, because each timeout is long."""
    wait_until_free(gateway)
    fields = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    body = b"POST /v1/jobs HTTP/1.1\r\n" + fields + b"\r\n{"
    begun = time.monotonic()
    with (
        connect(gateway) as silent,
        connect(gateway, GET) as slow,
        connect(gateway, GET + b"\r\n") as again,
        connect(gateway, body) as stopped,
        httpx2.stream("GET", f"{gateway.url}/fleet/events", trust_env=False, timeout=60) as events,
    ):
        read_one(again)
        again.sendall(GET)
        assert read_all(silent) == read_all(slow) == b""
        assert read_all(again) == b""
        assert time.monotonic() - begun >= 10, "the timeout for headers is not shorter"
        assert stopped.recv(65536).startswith(b"HTTP/1.1 408 ")
        for _ in events.iter_lines():
            if time.monotonic() - begun > 16:
                break  # the timeout for headers does not apply to a complete request
        else:
            pytest.fail("the gateway closed the stream")

"""Too many connections, and peers who take their time: the others are served."""

import re
import socket
import time
from contextlib import ExitStack

import httpx2
import pytest

from tests.e2e.gateway.conftest import Gateway

MOST = 5
GET = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """One for all tests of this file, which takes few connections."""
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), ("--max-connections", str(MOST)))
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


def dial(gateway, said=b""):
    """Open a connection and say something."""
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    connection.sendall(said)
    return connection


def heard(gateway):
    """Ask something; say whether there is any answer."""
    try:
        with dial(gateway, GET + b"\r\n") as connection:
            return bool(connection.recv(1))
    except OSError:
        return False


def read_all(connection):
    """Read until the gateway hangs up."""
    text = b""
    while part := connection.recv(65536):
        text += part
    return text


def read_one(connection):
    """Read one whole answer; the connection stays."""
    text = b""
    while b"\r\n\r\n" not in text:
        text += connection.recv(65536)
    head, _, body = text.partition(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", head, re.IGNORECASE)[1])
    while len(body) < length:
        body += connection.recv(65536)


def wait_until_free(gateway):
    """Wait until the gateway has noticed that those of the tests before have hung up."""
    while not all_are_served(gateway):
        time.sleep(0.05)


def all_are_served(gateway):
    """Say whether as many as may be connected are answered; the gateway hangs up on each of them."""
    try:
        with ExitStack() as stack:
            peers = [stack.enter_context(dial(gateway, GET)) for _ in range(MOST)]
            for peer in peers:
                peer.sendall(b"Connection: close\r\n\r\n")
            return all(read_all(peer).startswith(b"HTTP/1.1 200 ") for peer in peers)
    except OSError:
        return False


def test_beyond_the_bound_one_is_told_to_come_back_and_probes_are_answered(gateway):
    gateway.close()
    with ExitStack() as stack:
        # Each is half a request: the gateway has to wait for the rest.
        waiting = [stack.enter_context(dial(gateway, GET)) for _ in range(MOST)]
        late = httpx2.get(f"{gateway.url}/v1/models", trust_env=False)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "too_many_connections")
        assert late.headers["Retry-After"] == "2"
        assert late.headers["Connection"] == "close"
        assert httpx2.get(f"{gateway.url}/healthz", trust_env=False).status_code == 200
        waiting.pop().close()
        while httpx2.get(f"{gateway.url}/v1/models", trust_env=False).status_code == 503:
            time.sleep(0.05)


def test_far_beyond_it_nobody_is_heard(gateway):
    gateway.close()
    with ExitStack() as stack:
        for _ in range(MOST + 64):
            stack.enter_context(dial(gateway, GET))
        while heard(gateway):
            time.sleep(0.05)
    assert httpx2.get(f"{gateway.url}/healthz", trust_env=False).status_code == 200


def test_long_headers_are_refused(gateway):
    with dial(gateway, GET + b"X-Long: " + b"a" * 100_000) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")


def test_who_does_not_finish_is_hung_up_on_and_who_waits_is_not(gateway):
    """All at the same time, as each takes long."""
    wait_until_free(gateway)
    fields = b"Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n"
    body = b"POST /v1/jobs HTTP/1.1\r\n" + fields + b"\r\n{"
    begun = time.monotonic()
    with (
        dial(gateway) as silent,
        dial(gateway, GET) as slow,
        dial(gateway, GET + b"\r\n") as again,
        dial(gateway, body) as stopped,
        httpx2.stream("GET", f"{gateway.url}/fleet/events", trust_env=False, timeout=60) as events,
    ):
        read_one(again)
        again.sendall(GET)
        assert read_all(silent) == read_all(slow) == b""
        assert read_all(again) == b""
        assert time.monotonic() - begun >= 10, "there is time for headers"
        assert stopped.recv(65536).startswith(b"HTTP/1.1 408 ")
        for _ in events.iter_lines():
            if time.monotonic() - begun > 16:
                break  # whoever has said what they want may wait for it longer than headers may take
        else:
            pytest.fail("the gateway hung up")

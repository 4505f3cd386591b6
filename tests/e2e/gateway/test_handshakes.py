"""Connections that never finish their TLS handshake, and the limit on open files."""

import resource
import select
import socket
import ssl
import subprocess
from contextlib import ExitStack, suppress

import httpx2
import psutil
import pytest

from tests.programs import needs

MAX_CONNECTIONS = 5
RESERVE = 64


@pytest.fixture
def certificate(tmp_path):
    """A certificate for 127.0.0.1 and its key."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    arguments = [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(arguments, check=True, capture_output=True)
    return certificate, key


def connect(gateway):
    host, port = gateway.url.rpartition("/")[2].split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def closed(connections):
    """Return the connections that the gateway has closed."""
    readable, _, _ = select.select(connections, [], [], 0.1)
    return readable


@needs("openssl")
def test_unfinished_handshakes_count_as_connections_and_are_closed(start_gateway, fleet, certificate):
    files = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]))
    gateway = start_gateway(*files, "--max-connections", str(MAX_CONNECTIONS))
    trust = ssl.create_default_context(cafile=certificate[0])
    process = psutil.Process(fleet.processes[gateway.name].pid)
    before, descriptors = process.memory_info().rss, process.num_fds()
    most = [0]

    def number_closed():
        most[0] = max(most[0], process.num_fds() - descriptors)
        return len(closed(silent))

    with ExitStack() as stack:
        silent = [stack.enter_context(connect(gateway)) for _ in range(200)]
        excess = 200 - MAX_CONNECTIONS - RESERVE
        fleet.wait_until(lambda: number_closed() >= excess, "closed connections beyond the maximum")
        assert most[0] <= MAX_CONNECTIONS + RESERVE + 10, "open descriptors"
        print(f"handshakes: {(process.memory_info().rss - before) / 1e6:.1f} MB")
        fleet.wait_until(lambda: len(closed(silent)) == 200, "the end of all handshakes")
        assert httpx2.get(f"{gateway.url}/healthz", verify=trust, trust_env=False).text == "ok\n"


def test_a_gateway_without_free_descriptors_logs_few_lines_and_serves_again(gateway, fleet):
    gateway.close()
    process = psutil.Process(fleet.processes[gateway.name].pid)
    assert httpx2.get(f"{gateway.url}/healthz", trust_env=False).status_code == 200
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    path = fleet._log_folder / f"{gateway.name}.log"
    with ExitStack() as stack:
        events = stack.enter_context(
            httpx2.stream("GET", f"{gateway.url}/fleet/events", trust_env=False, timeout=60)
        )
        lines = events.iter_lines()
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 10, limits[1]))
        for _ in range(200):
            stack.enter_context(connect(gateway))
        fleet.wait_until(lambda: "connections can not be accepted" in path.read_text(), "a log line")
        for _ in range(10):
            next(lines)  # open connections are served meanwhile
    process.rlimit(resource.RLIMIT_NOFILE, limits)
    answered = []

    def is_served():
        with suppress(httpx2.TransportError):
            answered.append(httpx2.get(f"{gateway.url}/healthz", trust_env=False).status_code)
        return 200 in answered

    fleet.wait_until(is_served, "an answer")
    assert path.read_text().count("connections can not be accepted") <= 10
    assert path.stat().st_size < 20_000

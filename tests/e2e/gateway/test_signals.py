"""Signals to the gateway: SIGHUP, and a second SIGTERM."""

import signal
import threading
from contextlib import suppress

import httpx2
import pytest

from tests.e2e.gateway.conftest import SLOW


@pytest.fixture(scope="module")
def worker_options():
    """Requests that take longer than any test."""
    return (*SLOW, "--simulated-image-seconds", "600")


def test_sighup_is_ignored(gateway, fleet):
    fleet.processes[gateway.name].send_signal(signal.SIGHUP)
    assert gateway.http.get("/healthz").status_code == 200


def test_a_second_sigterm_ends_the_gateway_without_waiting_for_requests(gateway, fleet, broker_client):
    process = fleet.processes[gateway.name]

    def generate():
        with suppress(httpx2.HTTPError):
            gateway.http.post("/v1/images/generations", json={"prompt": "x"}, timeout=600)

    request = threading.Thread(target=generate)
    request.start()
    while not broker_client.stats().requests.dispatched:
        pass
    process.terminate()
    with suppress(httpx2.HTTPError):
        while True:  # until it accepts no more connections
            httpx2.get(f"{gateway.url}/healthz", trust_env=False)
    assert process.poll() is None, "it waits for the request"
    process.terminate()
    assert process.wait(60) == 1
    fleet.processes.pop(gateway.name).stdout.close()
    request.join(60)

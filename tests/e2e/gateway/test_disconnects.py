"""Requests are cancelled when the client disconnects or the gateway shuts down."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.e2e.gateway.conftest import SLOW


@pytest.fixture(scope="module")
def worker_options():
    return (*SLOW[:1], "60", *SLOW[2:])


@pytest.mark.parametrize("how", [{}, {"stream": True}, {"stream": True, "partial_images": 1}], ids=repr)
def test_a_disconnect_cancels_the_request(fleet, gateway, broker_client, how):
    host, port = gateway.url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "x", **how}).encode()
    head = f"POST /v1/images/generations HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"

    def running():
        return broker_client.stats()["per_gpu_stats"][0]["running"]

    before = broker_client.stats()["totals"]["answered"].get("cancelled", 0)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        fleet.wait_until(lambda: running() == 1, "a running request")
    cancelled = before + 1
    fleet.wait_until(
        lambda: broker_client.stats()["totals"]["answered"].get("cancelled", 0) == cancelled, "its cancellation"
    )
    fleet.wait_until(
        lambda: "imagegen_gateway_requests_in_flight 1.0" in gateway.http.get("/metrics").text,
        "no request in flight",
    )


def test_after_sigterm_requests_are_cancelled_at_the_drain_timeout(fleet, start_gateway, broker_client):
    gateway = start_gateway("--drain-timeout", "1")
    with ThreadPoolExecutor(1) as pool:
        response = pool.submit(gateway.http.post, "/v1/images/generations", json={"prompt": "x"})
        fleet.wait_until(lambda: broker_client.stats()["requests"]["dispatched"] >= 1, "a request at the worker")
        assert fleet.terminate(gateway.name, timeout=30) == 0
        assert (response.result().status_code, response.result().json()["error"]["code"]) == (503, "client_closed")
        assert "retry-after" in response.result().headers
    fleet.wait_until(lambda: broker_client.stats()["requests"]["dispatched"] == 0, "the end of the request")

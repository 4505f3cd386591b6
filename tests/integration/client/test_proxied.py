"""A broker behind a TCP proxy that accepts and closes connections while the broker is down."""

import time

import pytest

from imagegen_broker.access import Access
from imagegen_client import Client
from imagegen_protocol.keys import read_pair
from tests.integration.client.peers import PATIENCE
from tests.tcp_proxy import TcpProxy

BROKEN_HANDSHAKES = 6
"""More connections than a client tolerates."""


@pytest.fixture(params=["without keys", "with keys"])
def settings(request, keys):
    """Return the settings of a broker and of a client."""
    if request.param == "without keys":
        return lambda: {}, {}

    def broker():
        return {"access": Access(read_pair(keys / "broker.key_secret"), keys / "clients", keys / "workers")}

    return broker, {"key": keys / "clients" / "alice.key_secret", "broker_key": keys / "broker.key"}


def wait_for_broken_handshakes(proxy):
    before, end = proxy.accepted, time.monotonic() + PATIENCE
    while proxy.accepted < before + BROKEN_HANDSHAKES:
        assert time.monotonic() < end, "the client does not connect again"
        time.sleep(0.02)


def test_requests_survive_a_restart_behind_a_proxy(start_broker, settings):
    broker_settings, client_settings = settings
    first = start_broker(**broker_settings())
    with TcpProxy(first.frontend_endpoint) as proxy, Client(proxy.endpoint, **client_settings) as client:
        jobs = [client.submit("a red circle")]
        assert client.stats(PATIENCE)["queued_requests"] == 1
        start_broker.stop(first)
        wait_for_broken_handshakes(proxy)
        jobs.append(client.submit("a blue circle"))
        start_broker(first.frontend_endpoint, **broker_settings())
        end = time.monotonic() + PATIENCE
        while client.stats(PATIENCE)["queued_requests"] < 2:
            assert time.monotonic() < end
        assert not any(job.done() for job in jobs)
        for job in jobs:
            job.cancel()


def test_a_client_waits_for_a_broker_that_is_down_behind_a_proxy(start_broker, settings):
    broker_settings, client_settings = settings
    first = start_broker(**broker_settings())
    start_broker.stop(first)
    with TcpProxy(first.frontend_endpoint) as proxy, Client(proxy.endpoint, **client_settings) as client:
        job = client.submit("a red circle")
        wait_for_broken_handshakes(proxy)
        start_broker(first.frontend_endpoint, **broker_settings())
        assert client.stats(PATIENCE)["queued_requests"] == 1
        job.cancel()


def test_a_reset_connection_is_reopened(start_broker, settings):
    broker_settings, client_settings = settings
    broker = start_broker(**broker_settings())
    with TcpProxy(broker.frontend_endpoint) as proxy, Client(proxy.endpoint, **client_settings) as client:
        job = client.submit("a red circle")
        for _ in range(3):
            assert client.stats(PATIENCE)["queued_requests"] == 1
            proxy.reset_all()
        assert client.stats(PATIENCE)["queued_requests"] == 1
        job.cancel()

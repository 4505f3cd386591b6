"""A broker survives all kinds of broken connections that made libzmq abort the process."""

import os
import time

import pytest

from imagegen_client import Client
from imagegen_protocol.keys import read_curve_keys
from tests import zmtp
from tests.e2e.conftest import PATIENT, command
from tests.raw import Peers
from tests.tcp_proxy import TcpProxy

PAIRS = 8
FLOODS = 20
LONGEST_TIMER_SECONDS = 3.0
"""Longer than any timer of libzmq in a broker: ZeroMQ's heartbeats had an interval of 2 s."""


@pytest.fixture(params=["without keys", "with keys"])
def keyed(request, fleet, tmp_path):
    """Start a broker; return the options for a Client, and the keys for each port."""
    if request.param == "without keys":
        fleet.start_broker(*PATIENT)
        return {}, {"frontend": None, "backend": None}
    for name, place in (("broker", ""), ("alice", "clients"), ("gpu0", "workers")):
        command("imagegen", "keygen", name, "--out", str(tmp_path / place))
    fleet.start_broker(
        *PATIENT, "--key", str(tmp_path / "broker.key_secret"),
        "--authorized-clients", str(tmp_path / "clients"), "--authorized-workers", str(tmp_path / "workers"),
    )  # fmt: skip
    public = tmp_path / "broker.key"
    alice, gpu0 = tmp_path / "clients" / "alice.key_secret", tmp_path / "workers" / "gpu0.key_secret"
    options = {"key": alice, "broker_key": public}
    return options, {"frontend": read_curve_keys(alice, public), "backend": read_curve_keys(gpu0, public)}


@pytest.fixture
def peers():
    peers = Peers()
    yield peers
    peers.close()


def survives(fleet, **options):
    """Query a broker until all timers of its broken connections have fired."""
    with Client(fleet.frontend, **options) as client:
        end = time.monotonic() + LONGEST_TIMER_SECONDS
        while time.monotonic() < end:
            assert fleet.processes["broker"].poll() is None, "the broker has died"
            client.stats(30)
            time.sleep(0.05)


@pytest.mark.parametrize("port", ["frontend", "backend"])
def test_two_peers_of_one_routing_id_are_reset(fleet, keyed, peers, port):
    options, keys = keyed
    with TcpProxy(getattr(fleet.brokers["broker"], port)) as proxy:
        pairs = []
        for _ in range(PAIRS):
            routing_id = os.urandom(16)
            first = peers(proxy.endpoint, routing_id=routing_id, keys=keys[port])
            first.send({"type": "heartbeat"})
            first.receive()
            second = peers(proxy.endpoint, routing_id=routing_id, keys=keys[port])
            second.wait_until_connected()
            pairs.append((first, second))
        for _ in range(10):
            for pair in pairs:
                for peer in pair:
                    peer.send({"type": "heartbeat"})
            time.sleep(0.02)  # more messages than one read of a connection returns
        proxy.reset_all()
        survives(fleet, **options)


@pytest.mark.parametrize("port", ["frontend", "backend"])
def test_a_flood_that_ends_in_pings_is_reset(fleet, port):
    fleet.start_broker(*PATIENT)
    flood = zmtp.message(b"x") * 2000 + zmtp.ping() * 10
    for _ in range(FLOODS):
        peer = zmtp.connect(getattr(fleet.brokers["broker"], port), os.urandom(16))
        peer.sendall(flood)
        time.sleep(0.005)  # the broker reads the bytes before the reset discards them
        zmtp.reset(peer)
    survives(fleet)

"""A broker survives all kinds of broken connections that made libzmq abort the process."""

import contextlib
import os
import socket
import sys
import time

import psutil
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


def limited(soft, hard):
    """Return the start of a command that runs with limits on open files."""
    code = "import os, resource, sys; soft, hard = map(int, sys.argv[1:3])"
    code += "; resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))"
    return (sys.executable, "-c", f"{code}; os.execvp(sys.argv[3], sys.argv[3:])", str(soft), str(hard))


def test_the_broker_raises_its_limit_on_open_files(fleet):
    fleet.start_broker("--max-clients", "100", prefix=limited(300, 4096))
    assert psutil.Process(fleet.processes["broker"].pid).rlimit(psutil.RLIMIT_NOFILE) == (2200, 4096)


def test_silent_connections_at_the_limit_of_open_files_keep_others_out_for_a_handshake_only(fleet):
    fleet.start_broker(prefix=limited(64, 64))
    host, port = fleet.frontend.removeprefix("tcp://").split(":")
    with contextlib.ExitStack() as stack:
        for _ in range(100):
            silent = stack.enter_context(socket.socket())
            silent.setblocking(False)
            silent.connect_ex((host, int(port)))
        process = psutil.Process(fleet.processes["broker"].pid)
        fleet.wait_until(lambda: process.num_fds() >= 64, "as many open files as permitted")
        with Client(fleet.frontend) as client:
            assert client.stats(timeout=120).num_gpus == 0
    assert (fleet._log_folder / "broker.log").stat().st_size < 100_000

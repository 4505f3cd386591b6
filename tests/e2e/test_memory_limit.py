"""A message whose last frame never arrives: the memory limit ends the broker; with keys it is not received."""

import contextlib
import json

import pytest

from imagegen_broker.memory import MEMORY_STATUS
from tests import zmtp
from tests.e2e.conftest import PATIENT, command

LIMIT = 150 * 1024 * 1024
PIECE = zmtp.first_part(bytes(256 * 1024))


def send_without_end(endpoint, is_alive, most=1200):
    """Send frames of one message until the peer disconnects; return their number."""
    peer = zmtp.connect(endpoint, b"endless")
    sent = 0
    with contextlib.suppress(OSError), contextlib.closing(peer):
        while is_alive() and sent < most:
            peer.sendall(PIECE)
            sent += 1
    return sent


@pytest.mark.parametrize("port", ["frontend", "backend"])
def test_an_endless_message_ends_the_broker_with_a_clear_log_line(fleet, tmp_path, port):
    fleet.start_broker(*PATIENT, "--max-memory", str(LIMIT), "--log-format", "json")
    broker = fleet.processes["broker"]
    send_without_end(getattr(fleet.brokers["broker"], port), lambda: broker.poll() is None)
    assert broker.wait(60) == MEMORY_STATUS
    last = json.loads((tmp_path / "logs/broker.log").read_text().splitlines()[-1])
    assert last["message"] == "memory limit exceeded, exiting"
    assert last["resident_bytes"] > LIMIT


def test_an_endless_message_is_not_received_from_a_peer_without_a_key(fleet, tmp_path):
    for name, place in (("broker", ""), ("alice", "clients"), ("gpu0", "workers")):
        command("imagegen", "keygen", name, "--out", str(tmp_path / place))
    fleet.start_broker(
        *PATIENT, "--max-memory", str(LIMIT), "--key", str(tmp_path / "broker.key_secret"),
        "--authorized-clients", str(tmp_path / "clients"), "--authorized-workers", str(tmp_path / "workers"),
    )  # fmt: skip
    broker = fleet.processes["broker"]
    for port in ("frontend", "backend"):
        with pytest.raises((AssertionError, OSError)):
            send_without_end(getattr(fleet.brokers["broker"], port), lambda: broker.poll() is None)
    assert broker.poll() is None

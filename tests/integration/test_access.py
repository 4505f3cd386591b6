"""CURVE on real sockets: who is let in, in which role, and what a revoked key is worth."""

import logging
import os
import shutil

import msgpack
import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from imagegen_broker.access import Access
from imagegen_protocol.keys import CurveKeys, KeyFileError, generate_keys, read_key_pair, read_public_key
from tests.raw import PATIENCE_MS, Peer, ready, submit


class GuardedPeer(Peer):
    """A DEALER with keys, that watches its own handshakes."""

    def __init__(self, context, endpoint, dial_keys):
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTING_ID, os.urandom(16))
        if dial_keys is not None:
            dial_keys.apply(self.socket)
        self._monitor = self.socket.get_monitor_socket()
        self.socket.connect(endpoint)

    def next_event(self, *wanted):
        while True:
            assert self._monitor.poll(PATIENCE_MS), f"none of {wanted} came"
            event = recv_monitor_message(self._monitor)["event"]
            if event in wanted:
                return event

    def close(self):
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)


@pytest.fixture
def enter(keys):
    context = zmq.Context()
    peers = []

    def connect(endpoint, secret, broker="broker.key"):
        own = None if secret is None else CurveKeys(read_key_pair(keys / secret), read_public_key(keys / broker))
        peer = GuardedPeer(context, endpoint, own)
        peers.append(peer)
        return peer

    yield connect
    for peer in peers:
        peer.close()
    context.term()


def test_allowed_keys_serve_and_are_served(guarded, enter):
    client = enter(guarded.frontend_endpoint, "clients/alice.key_secret")
    worker = enter(guarded.backend_endpoint, "workers/gpu0.key_secret")
    ready(worker)
    submit(client, b"i" * 16)
    assert client.receive("accepted")[0]["request_ids"] == [b"i" * 16]
    assert worker.receive("work")[0]["request_id"] == b"i" * 16


@pytest.mark.parametrize(
    ("endpoint", "secret"),
    [
        ("frontend_endpoint", "stranger.key_secret"),
        ("backend_endpoint", "stranger.key_secret"),
        ("backend_endpoint", "clients/alice.key_secret"),
        ("frontend_endpoint", "workers/gpu0.key_secret"),
    ],
)
def test_a_key_opens_the_door_of_its_own_role_alone(guarded, enter, endpoint, secret):
    peer = enter(getattr(guarded, endpoint), secret)
    refused = (zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
    event = peer.next_event(zmq.EVENT_HANDSHAKE_SUCCEEDED, *refused)
    assert event == zmq.EVENT_HANDSHAKE_FAILED_AUTH


def test_no_key_and_a_wrong_broker_key_get_nowhere(guarded, enter):
    failed = (
        zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
        zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
        zmq.EVENT_DISCONNECTED,
    )
    for secret, broker in ((None, "broker.key"), ("clients/alice.key_secret", "stranger.key")):
        peer = enter(guarded.frontend_endpoint, secret, broker)
        assert peer.next_event(zmq.EVENT_HANDSHAKE_SUCCEEDED, *failed) != zmq.EVENT_HANDSHAKE_SUCCEEDED


def test_a_revoked_client_loses_its_standing_on_its_living_connection(guarded, enter, keys):
    client = enter(guarded.frontend_endpoint, "clients/alice.key_secret")
    submit(client, b"i" * 16)
    client.receive("accepted")
    (keys / "clients" / "alice.key").unlink()
    guarded.reload()
    while True:  # the loop reads the lists when it next wakes
        client.send({"type": "heartbeat"})
        message, _ = client.receive()
        if message["type"] == "error":
            break
    assert message["code"] == "unauthorized"
    view = guarded.snapshot(10).statistics
    assert view["clients"] == 0
    assert view["queued_requests"] == 0


def test_a_revoked_worker_gets_no_more_work(guarded, enter, keys):
    worker = enter(guarded.backend_endpoint, "workers/gpu0.key_secret")
    session = ready(worker)["session"]
    (keys / "workers" / "gpu0.key").unlink()
    guarded.reload()
    while True:
        worker.send({"type": "heartbeat", "session": session})
        message, _ = worker.receive()
        if message["type"] == "error":
            break
    assert message["code"] == "unauthorized"
    assert guarded.snapshot(10).statistics["num_gpus"] == 0


def test_a_key_that_is_added_later_is_let_in_after_a_reload(guarded, enter, keys):
    generate_keys(keys / "clients", "late")
    guarded.reload()
    guarded.snapshot(10)  # the loop has turned: the lists are read
    client = enter(guarded.frontend_endpoint, "clients/late.key_secret")
    client.send({"type": "stats", "request_id": os.urandom(16)})
    _, (frame,) = client.receive("stats")
    assert msgpack.unpackb(frame)["num_gpus"] == 0


def revoked(server, peer):
    """Wait until the broker answers a peer's messages with `unauthorized`."""
    server.reload()
    while True:  # the loop reads the lists when it next wakes
        peer.send({"type": "heartbeat"})
        message, _ = peer.receive()
        if message["type"] == "error":
            return message["code"] == "unauthorized"


def break_a_file(folder):
    (folder / "alice.key").unlink()
    (folder / "broken.key").write_text("no key at all")


def replace_by_a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


@pytest.mark.parametrize("change", [break_a_file, shutil.rmtree, replace_by_a_file])
def test_a_key_is_revoked_whatever_else_is_wrong_with_the_folder(guarded, enter, keys, change):
    client = enter(guarded.frontend_endpoint, "clients/alice.key_secret")
    submit(client, b"i" * 16)
    client.receive("accepted")
    change(keys / "clients")
    assert revoked(guarded, client)
    assert guarded.snapshot(10).statistics["clients"] == 0


def test_a_bad_file_is_reported_and_the_other_keys_stay(guarded, enter, keys, caplog):
    (keys / "clients" / "broken.key").write_text("no key at all")
    guarded.reload()
    guarded.snapshot(10)
    client = enter(guarded.frontend_endpoint, "clients/alice.key_secret")
    client.send({"type": "stats", "request_id": os.urandom(16)})
    client.receive("stats")
    (line,) = [record for record in caplog.records if record.getMessage().startswith("key file skipped")]
    assert line.levelno == logging.ERROR
    assert "broken.key" in str(line.__dict__)


def test_a_bad_file_is_skipped_at_the_start_too(start_broker, enter, keys, caplog):
    (keys / "clients" / "broken.key").write_text("no key at all")
    pair = read_key_pair(keys / "broker.key_secret")
    server = start_broker(access=Access(pair, keys / "clients", keys / "workers"))
    client = enter(server.frontend_endpoint, "clients/alice.key_secret")
    client.send({"type": "stats", "request_id": os.urandom(16)})
    client.receive("stats")
    assert [record for record in caplog.records if record.getMessage().startswith("key file skipped")]


def test_a_broker_with_bad_files_only_does_not_start(keys):
    break_a_file(keys / "clients")
    with pytest.raises(KeyFileError, match=r"no key file in .* can be used: .*broken\.key"):
        Access(read_key_pair(keys / "broker.key_secret"), keys / "clients", keys / "workers")


def test_a_key_can_be_bound_to_the_name_of_its_worker(start_broker, keys, enter):
    folders = keys / "clients", keys / "workers"
    broker = start_broker(access=Access(read_key_pair(keys / "broker.key_secret"), *folders, bind_names=True))
    worker = enter(broker.backend_endpoint, "workers/gpu0.key_secret")
    for name in ("gpu1", "gpu01", "raw"):
        ready_as(worker, name)
        error, _ = worker.receive("error")
        assert error["code"] == "unauthorized"
        assert "'gpu0'" in error["message"]
    ready_as(worker, "gpu0-1")
    assert worker.receive("heartbeat")[0]["session"] > 0


def ready_as(worker, name):
    """Ask for registration under a name."""
    fields = {"host": "here", "gpu_id": 0, "device": "cpu", "backend": "none", "models": ["m"]}
    header = {"worker_id": os.urandom(16), "name": name, "capacity": 1, "max_batch_size": 1, **fields}
    worker.send({"type": "ready", **header})


def test_the_maximum_priority_of_a_key_applies_after_a_reload(guarded, enter, keys):
    client = enter(guarded.frontend_endpoint, "clients/alice.key_secret")
    submit(client, b"i" * 16, priority=1)
    client.receive("accepted")
    file = keys / "clients" / "alice.key"
    file.write_text(f"metadata\n    max_priority = 0\n{file.read_text()}")
    guarded.reload()
    guarded.snapshot(10)
    submit(client, b"j" * 16, priority=1)
    error, _ = client.receive("error")
    assert (error["request_id"], error["code"]) == (b"j" * 16, "invalid_request")

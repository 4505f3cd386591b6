"""A real broker on real sockets, in a thread of the test's own process."""

import os
from threading import Thread

import pytest

from imagegen_broker.access import Access
from imagegen_broker.core.records import Settings
from imagegen_broker.server import Server
from imagegen_protocol.keys import generate_keys, read_key_pair

INTERVAL = 0.1


@pytest.fixture
def start_broker():
    """Start brokers (`start_broker.stop` ends one early); all are stopped at the end."""
    running = {}

    def start(frontend="tcp://127.0.0.1:0", backend="tcp://127.0.0.1:0", access=None, **settings):
        settings.setdefault("interval", INTERVAL)
        server = Server(Settings(epoch=os.urandom(16), **settings), frontend, backend, access)
        thread = Thread(target=server.run, name="broker", daemon=True)
        thread.start()
        running[server] = thread
        return server

    def stop(server):
        thread = running.pop(server)
        server.stop()
        thread.join(60)
        assert not thread.is_alive(), "the broker's loop did not end"

    start.stop = stop
    yield start
    for server in list(running):
        stop(server)


@pytest.fixture
def keys(tmp_path):
    """A broker's key, one allowed client, one allowed worker, and a stranger's."""
    generate_keys(tmp_path, "broker")
    generate_keys(tmp_path / "clients", "alice")
    generate_keys(tmp_path / "workers", "gpu0")
    generate_keys(tmp_path, "stranger")
    return tmp_path


@pytest.fixture
def guarded(start_broker, keys):
    """A broker that demands those keys."""
    access = Access(read_key_pair(keys / "broker.key_secret"), keys / "clients", keys / "workers")
    return start_broker(access=access)

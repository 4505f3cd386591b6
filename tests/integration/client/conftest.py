"""Fixtures: a real broker, a minimal worker, a client, and a broker that sends arbitrary messages."""

import msgpack
import pytest
import zmq

from imagegen_client import (
    Client,
)
from tests.integration.client.peers import PATIENCE, RawWorker


@pytest.fixture
def start_worker():
    """Start minimal workers; all are stopped at the end."""
    workers = []

    def start(broker, **settings):
        workers.append(RawWorker(broker.backend_endpoint, **settings))
        return workers[-1]

    yield start
    for worker in workers:
        worker.stop()


@pytest.fixture
def broker(start_broker):
    return start_broker()


@pytest.fixture
def worker(broker, start_worker):
    return start_worker(broker)


@pytest.fixture
def client(broker):
    with Client(broker.frontend_endpoint) as client:
        yield client


class FalseBroker:
    """A ROUTER that sends arbitrary messages to the client that sent last."""

    def __init__(self, context):
        self._socket = context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
        self._socket.setsockopt(zmq.RCVHWM, 10)
        self.endpoint = f"tcp://127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"

    def receive(self, *kinds):
        """Return the next message of these types and its frames; others are dropped."""
        while True:
            self.peer, header, *frames = self._socket.recv_multipart()
            message = msgpack.unpackb(header)
            if message["type"] in kinds:
                return message, frames

    def send(self, *frames):
        self._socket.send_multipart([self.peer, *frames])

    def say(self, *frames, **header):
        self.send(msgpack.packb({"v": 2, **header}), *frames)

    def heartbeat(self, interval=0.1, **fields):
        about = {"epoch": b"e" * 16, "session": 1, "beat": 1, "liveness": 3, **fields}
        self.say(type="heartbeat", interval_seconds=interval, **about)

    def chunk(self, fetch, payload, token=b"t" * 16):
        """Send one chunk of at most `chunk_bytes` that begins where `fetch` does."""
        start = fetch["offset"]
        data = payload[start : start + min(fetch["length"], fetch["chunk_bytes"])]
        about = {key: fetch[key] for key in ("request_id", "payload_id", "offset")}
        self.say(data, type="chunk", token=token, **about)
        return start + len(data)

    def close(self):
        self._socket.close(0)


@pytest.fixture
def open_false_broker():
    """Return a function that opens a `FalseBroker`; all are closed at the end."""
    context, brokers = zmq.Context(), []

    def open_one():
        brokers.append(FalseBroker(context))
        return brokers[-1]

    yield open_one
    for broker in brokers:
        broker.close()
    context.term()


@pytest.fixture
def false_broker(open_false_broker):
    return open_false_broker()

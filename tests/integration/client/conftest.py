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


@pytest.fixture
def false_broker():
    """A ROUTER that sends arbitrary messages to the client that sent last."""
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE * 1000))
    port = socket.bind_to_random_port("tcp://127.0.0.1")

    class FalseBroker:
        endpoint = f"tcp://127.0.0.1:{port}"

        def receive(self, kind):
            while True:
                self.peer, header, *frames = socket.recv_multipart()
                message = msgpack.unpackb(header)
                if message["type"] == kind:
                    return message, frames

        def send(self, *frames):
            socket.send_multipart([self.peer, *frames])

        def say(self, **header):
            self.send(msgpack.packb({"v": 1, **header}))

        def heartbeat(self, interval=0.1):
            about = {"epoch": b"e" * 16, "session": 1, "beat": 1, "liveness": 3}
            self.say(type="heartbeat", interval_seconds=interval, **about)

    yield FalseBroker()
    socket.close(0)
    context.term()

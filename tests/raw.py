"""Peers that are nothing but `zmq` and `msgpack`: what docs/protocol.md says, and whatever it forbids."""

import os

import msgpack
import zmq

from imagegen_protocol.limits import VERSION

PATIENCE_MS = 60_000


class Peer:
    """A DEALER that speaks maps."""

    def __init__(self, context, endpoint, *, routing_id=None, keys=None):
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.ROUTING_ID, routing_id or os.urandom(16))
        if keys is not None:
            keys.apply(self.socket)
        self._monitor = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(endpoint)

    def wait_until_connected(self):
        """Wait for the end of the first handshake."""
        assert self._monitor.poll(PATIENCE_MS), "no handshake succeeded"

    def close(self):
        self.socket.disable_monitor()
        self._monitor.close(0)
        self.socket.close(0)

    def send(self, header, *frames):
        self.socket.send_multipart([msgpack.packb({"v": VERSION, **header}), *frames])

    def receive(self, kind=None):
        """Return the next message (of a kind, others skipped) as its header and its further frames."""
        while True:
            assert self.socket.poll(PATIENCE_MS), f"no {kind or 'message'} came"
            header, *frames = self.socket.recv_multipart()
            message = msgpack.unpackb(header)
            assert message["v"] == VERSION
            if kind is None or message["type"] == kind:
                return message, frames


class Peers:
    """Peers that are closed together."""

    def __init__(self):
        self._context = zmq.Context()
        self._peers = []

    def __call__(self, endpoint, **options):
        self._peers.append(Peer(self._context, endpoint, **options))
        return self._peers[-1]

    def close(self):
        for peer in self._peers:
            peer.close()
        self._context.term()


def ready(worker, **fields):
    """Register a peer as a worker; return the broker's heartbeat."""
    worker.send(
        {
            "type": "ready",
            "worker_id": os.urandom(16),
            "name": "raw",
            "host": "here",
            "gpu_id": 0,
            "device": "cpu",
            "backend": "none",
            "models": ["raw-model"],
            "capacity": 2,
            "max_batch_size": 1,
            **fields,
        }
    )
    heartbeat, _ = worker.receive("heartbeat")
    assert heartbeat["session"] > 0
    return heartbeat


def submit(client, request_id, **fields):
    """Send a good request; return its body."""
    body = msgpack.packb({"prompt": "a red circle", "seed": 7})
    client.send({"type": "submit", "request_id": request_id, **fields}, body)
    return body


def result(worker, request_id, *images, **fields):
    """Answer with images of one pixel, whatever they are in truth."""
    info = [{"format": "png", "width": 1, "height": 1, "seed": 7}] * len(images)
    header = {"request_id": request_id, "worker": "raw", "model": "raw-model", "images": info, **fields}
    worker.send({"type": "result", **header}, *images)

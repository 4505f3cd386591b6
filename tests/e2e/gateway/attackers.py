"""Attackers of a fleet, as processes of their own: `python -m tests.e2e.gateway.attackers KIND ARGUMENTS`.

Prints a line when it has begun, and the outcomes as JSON at the end of its standard input.
"""

import base64
import json
import os
import socket
import sys
import threading
import zlib
from contextlib import ExitStack, suppress

import httpx2
import zmq

from imagegen_protocol.frames import encode
from imagegen_protocol.keys import read_curve_keys
from imagegen_protocol.messages import ClientHeartbeat, Fetch, StatsQuery, Submit
from imagegen_protocol.request import encode_request, make_request

MAX_BODY = 16 * 1024**2
"""The `--max-body-bytes` of the gateway."""
BURST_BYTES = 20_000
"""Bytes that a flood sends at once, every 10 ms: 2 MB/s each, and up to 8,000 messages a second."""
_MESSAGE_BYTES = 200
"""What a message costs besides its bytes."""


def png(chunks=0, padding=0):
    """Return a PNG of 8x8 pixels with empty chunks, and a chunk of random bytes."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = chunk(b"IHDR", b"\0\0\0\x08\0\0\0\x08\x08\0\0\0\0")
    filling = chunks * chunk(b"teSt", b"") + (chunk(b"teSt", os.urandom(padding)) if padding else b"")
    pixels = chunk(b"IDAT", zlib.compress(8 * (9 * b"\0")))
    return b"\x89PNG\r\n\x1a\n" + header + filling + pixels + chunk(b"IEND", b"")


class Attacks:
    """Attacks in threads that repeat them until the end."""

    def __init__(self):
        self.ended = threading.Event()
        self.outcomes = {}
        """Number of repetitions by attack and outcome."""

    def start(self, name, attack):
        def run():
            while not self.ended.is_set():
                with suppress(httpx2.HTTPError, OSError):
                    outcome = str(attack())
                    counts = self.outcomes.setdefault(name, {})
                    counts[outcome] = counts.get(outcome, 0) + 1

        threading.Thread(target=run, daemon=True).start()


class GatewayAttacks(Attacks):
    """The attacks of one API key."""

    def __init__(self, url, key, file, hanging):
        super().__init__()
        self._url, self._headers = url, {"Authorization": f"Bearer {key}"}
        self._host, self._port = url.removeprefix("http://").split(":")
        chunks, padded = png(chunks=1_200_000), base64.b64encode(png(padding=8 * 1000**2)).decode()
        fields = b'{"prompt":"x",' + b",".join(b'"f%d":1' % number for number in range(1_000_000)) + b"}"
        form = {"data": {"prompt": "x", "loras": 20_000 * "["}, "files": {"image": png()}}
        images, jobs, edits = "/v1/images/generations", "/v1/jobs", "/v1/images/edits"
        for name, attack in {
            "PNG of 1.2 million chunks": self._post(edits, data={"prompt": "x"}, files={"image": chunks}),
            "JSON of 1 million fields": self._post(images, content=fields),
            "JSON of 1 million fields as a job": self._post(jobs, content=fields),
            "long texts in errors": self._post(jobs, json={"p" * 10**7: 1}),
            "nested JSON in a form": self._post(edits, **form),
            "jobs with large images": self._post(jobs, json={"prompt": "x", "image": padded}),
            "hanging webhooks": self._post(jobs, json={"prompt": "x", "size": "8x8", "webhook_url": hanging}),
        }.items():
            for _ in range(2):
                self.start(name, attack)
        for name, attack in {
            "unread files": lambda: self._connections(self._get(file), 30, read=1),
            "unread lists": lambda: self._connections(self._get("/v1/jobs?limit=100"), 10, read=1),
            "unfinished bodies": lambda: self._connections(self._begin_post(), 30),
            "event streams": lambda: self._connections(self._get("/fleet/events"), 110),
            "silent connections": lambda: self._connections(b"", 50),
        }.items():
            self.start(name, attack)

    def _post(self, path, **body):
        def attack():
            headers = self._headers | ({"Content-Type": "application/json"} if "content" in body else {})
            with httpx2.Client(base_url=self._url, trust_env=False, timeout=60) as client:
                return client.post(path, headers=headers, **body).status_code

        return attack

    def _get(self, path):
        return self._head("GET", path, "")

    def _begin_post(self):
        return self._head("POST", "/v1/jobs", f"Content-Type: application/json\r\nContent-Length: {MAX_BODY}\r\n")

    def _head(self, method, path, fields):
        key = f"Authorization: {self._headers['Authorization']}\r\n"
        return f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\n{key}{fields}\r\n".encode()

    def _connections(self, data, number, read=0):
        """Open connections that send some bytes and read at most one; close them at the end."""
        with ExitStack() as stack:
            for _ in range(number):
                connection = stack.enter_context(socket.socket())
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                connection.settimeout(60)
                connection.connect((self._host, int(self._port)))
                connection.sendall(data)
                if read:
                    connection.recv(read)
            self.ended.wait()
        return 0


class BrokerAttacks(Attacks):
    """The attacks of one client key; it never reads."""

    def __init__(self, endpoint, key, broker_key):
        super().__init__()
        self._endpoint, self._keys = endpoint, read_curve_keys(key, broker_key)
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        body = encode_request(make_request(prompt="x", seed=1, width=8, height=8))
        sizes = [len(body), 60 * 1024**2, 60 * 1024**2]
        asked = {"request_id": os.urandom(16), "payload_id": os.urandom(16)}
        for name, make in {
            "garbage": lambda: [os.urandom(64)],
            "unread statistics": lambda: [encode(StatsQuery(request_id=os.urandom(16)))],
            "payloads that never arrive": lambda: [encode(Submit(request_id=os.urandom(16), frame_bytes=sizes))],
            "invalid requests": lambda: [encode(Submit(request_id=os.urandom(16))), os.urandom(60_000)],
            "single bytes": lambda: [encode(Fetch(**asked, offset=0, length=1))],
            "requests of unknown models": lambda: [encode(Submit(request_id=os.urandom(16), model="none")), body],
        }.items():
            self.start(name, lambda make=make: self._flood(make))
        self.start("connections", lambda: self._connections(300))
        self.start("handshakes", self._handshakes)

    def _connect(self):
        dealer = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.ROUTING_ID, os.urandom(16))
        self._keys.apply(dealer)
        dealer.connect(self._endpoint)
        return dealer

    def _flood(self, make):
        with self._connect() as dealer:
            for _ in range(100):
                with suppress(zmq.Again):
                    sent = 0
                    while sent < BURST_BYTES:
                        message = make()
                        dealer.send_multipart(message, zmq.NOBLOCK)
                        sent += _MESSAGE_BYTES + sum(map(len, message))
                if self.ended.wait(0.01):
                    break
        return "connection"

    def _connections(self, number):
        with ExitStack() as stack:
            dealers = [stack.enter_context(self._connect()) for _ in range(number)]
            while not self.ended.wait(0.1):
                for dealer in dealers:
                    with suppress(zmq.Again):
                        dealer.send(encode(ClientHeartbeat()), zmq.NOBLOCK)
        return "connections"

    def _handshakes(self):
        """Open connections that never begin a handshake."""
        host, port = self._endpoint.removeprefix("tcp://").split(":")
        with ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=60))
            self.ended.wait(5)
        return "connections"


def main(kind, *arguments):
    attacks = {"gateway": GatewayAttacks, "broker": BrokerAttacks}[kind](*arguments)
    print("begun", flush=True)
    sys.stdin.read()
    attacks.ended.set()
    print(json.dumps(attacks.outcomes), flush=True)
    os._exit(0)  # its threads may wait for an answer


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The least that a program can do to have its requests answered: one thread, one DEALER, no checks, no retries.

It encodes and decodes the same headers and bodies, acknowledges as the client does (once for what has arrived
together), and says every second that it lives.
"""

import secrets
import time
from collections.abc import Callable

import zmq

from imagegen_protocol import encode_request
from imagegen_protocol.frames import decode_broker_to_client, encode
from imagegen_protocol.messages import Ack, ClientHeartbeat, Goodbye, Result, Submit
from imagegen_protocol.request import GenerationRequest

HEARTBEAT_SECONDS = 1.0
PATIENCE_SECONDS = 60.0


class Bare:
    """A connection to one broker."""

    def __init__(self, broker: str) -> None:
        self._context = zmq.Context()
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._socket.linger = 1000
        self._socket.sndhwm = 0
        self._socket.connect(broker)
        self._beat = 0.0

    def close(self) -> None:
        """Take leave and close it."""
        self._socket.send(encode(Goodbye()))
        self._socket.close()
        self._context.term()

    def run(self, count: int, window: int, on_answer: Callable[[int], object] = lambda number: None) -> int:
        """Have `count` requests answered, at most `window` on their way; return the bytes of the images."""
        on_way: set[bytes] = set()
        sent = answered = length = 0
        while answered < count:
            while sent < count and len(on_way) < window:
                self._send(key := secrets.token_bytes(16), sent)
                on_way.add(key)
                sent += 1
            acknowledged = []
            self._wait()
            frames = self._socket.recv_multipart()
            while True:
                message = decode_broker_to_client(frames[0])
                if isinstance(message, Result):
                    on_way.remove(message.request_id)
                    acknowledged.append(message.request_id)
                    length += sum(map(len, frames[1:]))
                    on_answer(answered)
                    answered += 1
                try:
                    frames = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
            if acknowledged:
                self._socket.send(encode(Ack(request_ids=acknowledged)))
        return length

    def _wait(self) -> None:
        """Wait for something to read, and say on the way that one lives. Raises `TimeoutError`."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            if (now := time.monotonic()) >= self._beat:
                self._beat = now + HEARTBEAT_SECONDS
                self._socket.send(encode(ClientHeartbeat()))
            if self._socket.poll(round(HEARTBEAT_SECONDS * 1000)):
                return
            if now >= end:
                raise TimeoutError(f"no answer in {PATIENCE_SECONDS:.0f} s; a bare socket does not ask again")

    def _send(self, key: bytes, number: int) -> None:
        body = encode_request(GenerationRequest(prompt=f"picture {number}", seed=number))
        self._socket.send_multipart([encode(Submit(request_id=key)), body])

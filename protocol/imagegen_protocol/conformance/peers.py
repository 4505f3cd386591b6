"""Sockets of the tool, and the loop that reads them and sends the heartbeats that are due."""

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgpack
import zmq

from imagegen_protocol.conformance.report import Violation
from imagegen_protocol.errors import ProtocolError
from imagegen_protocol.frames import encode
from imagegen_protocol.limits import ID_BYTES, MAX_CHUNK_BYTES, VERSION
from imagegen_protocol.messages import Message
from imagegen_protocol.sockets import enable_keepalive

T = TypeVar("T")
M = TypeVar("M", bound=Message)
_POLL_SECONDS = 0.02


class Received(NamedTuple):
    """A message of the implementation under test."""

    message: Message
    frames: list[bytes]
    header: bytes
    at: float
    peer: bytes = b""
    """Routing id of the sender, if a ROUTER has received it."""


def pack(message: Message | Mapping[str, Any]) -> bytes:
    """Return the header of a message; a map may break the protocol, and gets the version that it lacks."""
    if isinstance(message, Message):
        return encode(message)
    return bytes(msgpack.packb({"v": VERSION, **message}))


def lists(request_id: bytes) -> Callable[[Any], bool]:
    """Return a condition: a message lists an id in its `request_ids`."""
    return lambda message: request_id in message.request_ids


def has(**values: Any) -> Callable[[Any], bool]:
    """Return a condition: the fields of a message have these values."""
    return lambda message: all(getattr(message, name) == value for name, value in values.items())


def new_id() -> bytes:
    """Return a random id."""
    return secrets.token_bytes(ID_BYTES)


class Port:
    """A socket, and its received messages that no check has taken yet."""

    def __init__(self, socket: "zmq.Socket[bytes]", decode: Callable[[bytes], Message], name: str) -> None:
        self.socket = socket
        self.inbox: list[Received] = []
        self._decode = decode
        self._name = name
        socket.setsockopt(zmq.LINGER, 200)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_CHUNK_BYTES)
        socket.setsockopt(zmq.RCVHWM, 0)
        enable_keepalive(socket)

    def read(self) -> None:
        """Read what has arrived. Raises `Violation` for a message that breaks the protocol."""
        while self.socket.poll(0):
            parts = self.socket.recv_multipart()
            peer = parts.pop(0) if self.socket.type == zmq.ROUTER else b""
            header, *frames = parts or [b""]
            try:
                received = Received(self._decode(header), frames, header, time.monotonic(), peer)
            except ProtocolError as error:
                raise Violation(f"{self._name} sent an invalid message: {error.message}") from error
            if self.on_received(received):
                self.inbox.append(received)

    def on_received(self, received: Received) -> bool:
        """Process a received message; return False if no check examines it."""
        return True

    def tick(self, now: float) -> None:
        """Send the heartbeats that are due."""

    def take(self, kind: type[M], where: Callable[[M], bool] = lambda message: True) -> Received | None:
        """Remove and return the first message of a kind that meets a condition; None if there is none."""
        for index, received in enumerate(self.inbox):
            if isinstance(received.message, kind) and where(received.message):
                return self.inbox.pop(index)
        return None

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


class Loop:
    """The ports of one check, and the time for which it waits for a message."""

    def __init__(self, patience: float) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.patience = patience
        """Seconds within which an expected message must arrive."""
        self.ports: list[Port] = []

    def step(self) -> None:
        """Poll and read all sockets once, and send the heartbeats that are due."""
        poller = zmq.Poller()
        for port in self.ports:
            poller.register(port.socket, zmq.POLLIN)
        poller.poll(int(_POLL_SECONDS * 1000))
        for port in list(self.ports):
            port.read()
            port.tick(time.monotonic())

    def until(self, condition: Callable[[], T | None], what: str, seconds: float | None = None) -> T:
        """Run the loop until a condition returns a true value; return it. Raises `Violation` after `patience`."""
        wait = self.patience if seconds is None else seconds
        end = time.monotonic() + wait
        while not (value := condition()):
            if time.monotonic() > end:
                raise Violation(f"{what}: nothing within {wait:.1f} s")
            self.step()
        return value

    def until_any(self, ports: Sequence[Port], what: str, seconds: float) -> None:
        """Wait until one of the ports has a message that no check has taken."""
        self.until(lambda: any(port.inbox for port in ports), what, seconds)

    def receive(
        self,
        port: Port,
        kind: type[M],
        where: Callable[[M], bool] = lambda message: True,
        *,
        what: str = "",
        seconds: float | None = None,
    ) -> tuple[M, Received]:
        """Return the next message of a kind that meets a condition, decoded and as it was received."""
        tag = kind.__struct_config__.tag
        received = self.until(lambda: port.take(kind, where), what or f"expected {str(tag).upper()}", seconds)
        assert isinstance(received.message, kind)
        return received.message, received

    def wait(self, seconds: float) -> None:
        """Run the loop for some time, to observe the implementation without a stimulus."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()

    def close(self) -> None:
        """Close all sockets."""
        for port in self.ports:
            port.close()
        self.ports.clear()
        self.context.term()

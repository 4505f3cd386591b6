"""The broker that clients and workers under test connect to."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import zmq

from imagegen_protocol.conformance.peers import Loop, Port, Received, new_id, pack
from imagegen_protocol.conformance.report import Violation, expect
from imagegen_protocol.limits import MAX_CHUNK_BYTES
from imagegen_protocol.messages import BrokerHeartbeat, Chunk, Fetch, Message
from imagegen_protocol.transfers import chunks, sizes_of

INTERVAL, LIVENESS, WINDOW = 0.5, 6, 65_536
"""Settings that the tool announces."""
SILENCE = INTERVAL * LIVENESS


class FakeBroker(Port):
    """A ROUTER with the sessions of one implementation; the latest connection counts."""

    def __init__(self, loop: Loop, endpoint: str, decode: Callable[[bytes], Message], name: str) -> None:
        super().__init__(loop.context.socket(zmq.ROUTER), decode, name)
        self.loop = loop
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self.socket.bind(endpoint)
        self.endpoint: str = self.socket.get_string(zmq.LAST_ENDPOINT)
        self.epoch = new_id()
        self.sessions = 0
        self.peer = b""
        """Routing id of the latest connection."""
        self.peers: list[bytes] = []
        """Routing ids of all connections."""
        self.messages: list[Received] = []
        """All messages of the latest connection."""
        self.is_silent = False
        """Whether it sends nothing."""
        self.beat = 0
        self.tokens: set[bytes] = set()
        """Tokens that were sent on the latest connection."""
        self._due = 0.0
        loop.ports.append(self)

    def new_token(self) -> bytes:
        """Return a new token."""
        token = new_id()
        self.tokens.add(token)
        return token

    def send(self, message: Message | Mapping[str, Any], *frames: bytes) -> None:
        """Send a message on the latest connection. A map is sent as it is, and may violate the protocol."""
        if self.peer and not self.is_silent:
            self.socket.send_multipart([self.peer, pack(message), *frames])

    def heartbeat(self, **keys: Any) -> None:
        """Send a HEARTBEAT."""
        self.beat += 1
        settings = {"interval_seconds": INTERVAL, "liveness": LIVENESS, "fetch_window_bytes": WINDOW}
        fixed = {"epoch": self.epoch, "session": self.sessions, "beat": self.beat, **settings}
        self.send(BrokerHeartbeat(**{**fixed, **keys}))

    def on_received(self, received: Received) -> bool:
        """Store a new connection."""
        if received.peer != self.peer:
            if received.peer in self.peers:
                return False  # a late message of an earlier connection
            self.peers.append(received.peer)
            self.peer = received.peer
            self.messages = []
            self.tokens.clear()
            self.connected()
        self.messages.append(received)
        return True

    def connected(self) -> None:
        """Handle a new connection; overridden by subclasses."""

    def tick(self, now: float) -> None:
        """Send a heartbeat if one is due."""
        if now >= self._due:
            self._due = now + INTERVAL / 2
            self.heartbeat()

    def connection_count(self) -> int:
        """Return the number of connections so far."""
        return len(self.peers)


class Upload:
    """A payload that the implementation fetches from the tool, and the rules that its FETCHes follow."""

    def __init__(self, broker: FakeBroker, request_id: bytes, payload_id: bytes, frames: Sequence[bytes]) -> None:
        self._broker = broker
        self.request_id = request_id
        self.payload_id = payload_id
        self.frames = frames
        self.total = sum(sizes_of(frames))
        self.sent = 0
        self.fetches: list[Fetch] = []
        self._tokens: dict[bytes, int] = {}
        self._confirmed = 0

    def next_fetch(self, seconds: float | None = None) -> Fetch:
        """Wait for the next FETCH and check it."""
        fetch, _ = self._broker.loop.receive(
            self._broker, Fetch, lambda each: each.request_id == self.request_id, seconds=seconds
        )
        expect(fetch.payload_id == self.payload_id, "FETCH names another payload")
        expect(fetch.offset + fetch.length <= self.total, f"FETCH beyond the end, {self.total:,} bytes")
        if fetch.token:
            expect(fetch.token in self._broker.tokens, "FETCH has a token that was not sent on this connection")
            self._confirmed = max(self._confirmed, self._tokens.get(fetch.token, 0))
        ahead = fetch.offset + fetch.length - self._confirmed
        expect(ahead <= WINDOW, f"{ahead:,} bytes are requested and not confirmed, the window has {WINDOW:,}")
        self.fetches.append(fetch)
        return fetch

    def serve(self, until: int | None = None) -> None:
        """Answer FETCHes until this number of bytes is sent, by default the whole payload."""
        limit = self.total if until is None else until
        while self.sent < limit:
            self.answer(self.next_fetch(), limit)

    def answer(self, fetch: Fetch, limit: int) -> None:
        """Send the chunks of a FETCH that begin before a limit."""
        for chunk, data in chunks(self.frames, fetch):
            if chunk.offset < limit:
                token = self._broker.new_token()
                end = chunk.offset + len(data)
                self._tokens[token] = end
                message = Chunk(
                    request_id=self.request_id, payload_id=self.payload_id, offset=chunk.offset, token=token
                )
                self._broker.send(message, bytes(data))
                self.sent = max(self.sent, end)

    @property
    def last_token(self) -> bytes:
        """Token of the last chunk that was sent."""
        return next(reversed(self._tokens), b"")

    def reconnected(self) -> None:
        """Forget the tokens of an earlier connection."""
        self._tokens.clear()
        self._confirmed = self.sent


def download(
    broker: FakeBroker,
    request_id: bytes,
    payload_id: bytes,
    total: int,
    *,
    start: int = 0,
    length: int = 20_000,
    chunk_bytes: int = 4096,
) -> bytes:
    """Fetch a payload from the tested implementation, from byte `start`; check its CHUNKs; return the bytes."""
    data = b""
    while start + len(data) < total:
        offset = start + len(data)
        asked = min(length, total - offset)
        broker.send(
            Fetch(
                request_id=request_id, payload_id=payload_id, offset=offset, length=asked, chunk_bytes=chunk_bytes
            )
        )
        end = offset + asked
        while start + len(data) < end:
            position = start + len(data)
            chunk, received = broker.loop.receive(broker, Chunk, lambda each: each.request_id == request_id)
            if len(received.frames) != 1:
                raise Violation(f"a CHUNK has {len(received.frames)} frames")
            part = received.frames[0]
            expect(chunk.offset == position, f"a CHUNK at {chunk.offset}, expected the one at {position}")
            expect(chunk.payload_id == payload_id, "a CHUNK of another payload")
            limit = min(chunk_bytes, MAX_CHUNK_BYTES, end - position)
            expect(0 < len(part) <= limit, f"a CHUNK of {len(part)} bytes, at most {limit} were requested")
            data += part
    return data

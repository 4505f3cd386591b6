"""The clients and workers that test a broker."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgpack
import zmq

from imagegen_protocol.conformance.peers import Loop, Port, Received, has, lists, new_id, pack
from imagegen_protocol.conformance.report import Violation
from imagegen_protocol.errors import RETURNED
from imagegen_protocol.frames import decode_broker_to_client, decode_broker_to_worker
from imagegen_protocol.limits import DEFAULT_HEARTBEAT_INTERVAL_SECONDS, DEFAULT_LIVENESS
from imagegen_protocol.messages import (
    Accepted,
    Ack,
    BrokerHeartbeat,
    Chunk,
    ClientHeartbeat,
    Error,
    Fetch,
    Goodbye,
    Message,
    Ready,
    Result,
    Submit,
    Work,
    WorkerHeartbeat,
)
from imagegen_protocol.transfers import chunks

BODY: bytes = msgpack.packb({"prompt": "a red circle", "seed": 7})
IMAGE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 20
INFO = {"format": "png", "width": 1, "height": 1, "seed": 7}


class Peer(Port, ABC):
    """A DEALER that sends heartbeats and stores the settings that the broker announces."""

    def __init__(
        self,
        loop: Loop,
        endpoint: str,
        decode: Callable[[bytes], Message],
        routing_id: bytes | None = None,
    ) -> None:
        super().__init__(loop.context.socket(zmq.DEALER), decode, "the broker")
        self.loop = loop
        self.socket.setsockopt(zmq.ROUTING_ID, routing_id or new_id())
        self.socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        self.socket.connect(endpoint)
        self.heartbeat: BrokerHeartbeat | None = None
        """The last HEARTBEAT of the broker."""
        self.heartbeats: list[Received] = []
        self.token = b""
        self.is_alive = True
        """Whether it sends heartbeats."""
        self.confirms = True
        """Whether it repeats the broker's tokens."""
        self._due = 0.0
        loop.ports.append(self)

    def send(self, message: Message | Mapping[str, Any], *frames: bytes) -> None:
        """Send a message. A map is sent as it is, and may violate the protocol."""
        self.send_header(pack(message), *frames)

    def send_header(self, header: bytes, *frames: bytes) -> None:
        """Send a message whose header is encoded."""
        self.socket.send_multipart([header, *frames])

    @property
    def interval(self) -> float:
        """Seconds between two heartbeats."""
        return self.heartbeat.interval_seconds if self.heartbeat else DEFAULT_HEARTBEAT_INTERVAL_SECONDS

    @property
    def silence(self) -> float:
        """Seconds after which a silent peer counts as dead."""
        return self.interval * (self.heartbeat.liveness if self.heartbeat else DEFAULT_LIVENESS)

    def on_received(self, received: Received) -> bool:
        """Store heartbeats and tokens."""
        message = received.message
        if self.confirms and (token := getattr(message, "token", b"")) and not isinstance(message, Fetch):
            self.token = token
        if isinstance(message, BrokerHeartbeat):
            self.heartbeat = message
            self.heartbeats.append(received)
        return not isinstance(message, BrokerHeartbeat)

    def tick(self, now: float) -> None:
        """Send a heartbeat if one is due."""
        if self.is_alive and now >= self._due:
            self._due = now + self.interval / 2
            self.beat()

    @abstractmethod
    def beat(self) -> None:
        """Send a heartbeat."""

    def wait_for_heartbeats(self, number: int) -> None:
        """Wait for further heartbeats of the broker: then it has processed all messages sent before."""
        wanted = len(self.heartbeats) + number
        seconds = self.loop.patience + number * self.interval
        self.loop.until(lambda: len(self.heartbeats) >= wanted, "expected HEARTBEAT", seconds)

    def leave(self) -> None:
        """Send GOODBYE and close the socket."""
        self.send(Goodbye())
        self.disconnect()

    def disconnect(self) -> None:
        """Close the socket without GOODBYE."""
        self.loop.ports.remove(self)
        self.close()


class Client(Peer):
    """A simulated client that is connected to the broker under test."""

    def __init__(self, loop: Loop, endpoint: str, routing_id: bytes | None = None) -> None:
        super().__init__(loop, endpoint, decode_broker_to_client, routing_id)

    def beat(self) -> None:
        """Send a heartbeat."""
        self.send(ClientHeartbeat(token=self.token))

    def submit(self, model: str, *, body: bytes = BODY, **keys: Any) -> bytes:
        """Send a request and wait until it is accepted; return its id."""
        request_id = new_id()
        self.send(Submit(request_id=request_id, model=model, **keys), body)
        self.accepted(request_id)
        return request_id

    def accepted(self, request_id: bytes) -> None:
        """Wait for ACCEPTED."""
        self.loop.receive(self, Accepted, lists(request_id))

    def result(self, request_id: bytes, seconds: float | None = None) -> tuple[Result, Received]:
        """Wait for RESULT."""
        return self.loop.receive(self, Result, has(request_id=request_id), seconds=seconds)

    def error(self, request_id: bytes | None, code: str, seconds: float | None = None) -> Error:
        """Wait for an ERROR with this code."""
        error, _ = self.loop.receive(
            self,
            Error,
            has(request_id=request_id),
            what=f"expected ERROR {code}",
            seconds=seconds,
        )
        if error.code != code:
            raise Violation(f"expected ERROR {code}, got {error.code}: {error.message}")
        return error

    def ack(self, *request_ids: bytes) -> None:
        """Acknowledge answers."""
        self.send(Ack(request_ids=list(request_ids), token=self.token))

    def serve(self, request_id: bytes, frames: Sequence[bytes], *, until: int | None = None) -> list[Fetch]:
        """Answer FETCHes until a number of bytes of the payload is sent; return them."""
        total = sum(map(len, frames)) if until is None else until
        fetches: list[Fetch] = []
        sent = 0
        while sent < total:
            fetch, _ = self.loop.receive(self, Fetch, has(request_id=request_id))
            fetches.append(fetch)
            for chunk, data in chunks(frames, fetch):
                if chunk.offset < total:
                    self.send(chunk, bytes(data))
                    sent = max(sent, chunk.offset + len(data))
        return fetches


class Worker(Peer):
    """A simulated worker that is connected to the broker under test."""

    def __init__(
        self, loop: Loop, endpoint: str, models: Sequence[str], routing_id: bytes | None = None, **keys: Any
    ) -> None:
        super().__init__(loop, endpoint, decode_broker_to_worker, routing_id)
        self.is_alive = False  # it is registered first
        self.lists: dict[str, list[bytes]] = {"queued": [], "running": [], "finished": []}
        self.state = "ready"
        identity = new_id()
        fixed: dict[str, Any] = {
            "worker_id": identity,
            "name": f"conformance-{identity.hex()[:8]}",
            "host": "conformance",
            "gpu_id": 0,
            "device": "none",
            "backend": "none",
            "models": list(models),
            "capacity": 8,
            "max_batch_size": 1,
        }
        self.ready = Ready(**{**fixed, **keys})

    def register(self, **lists: list[bytes]) -> None:
        """Send READY and wait for the broker's HEARTBEAT."""
        self.lists |= lists
        fields = {name: getattr(self.ready, name) for name in self.ready.__struct_fields__}
        before = len(self.heartbeats)
        self.send(Ready(**{**fields, **self.lists}))
        self.loop.until(
            lambda: len(self.heartbeats) > before and self.heartbeat and self.heartbeat.session,
            "expected HEARTBEAT with a session after READY",
        )
        self.is_alive = True

    def beat(self) -> None:
        """Send a heartbeat with a report."""
        if self.heartbeat is not None:
            keys = {"session": self.heartbeat.session, "beat": self.heartbeat.beat, "state": self.state}
            self.send(WorkerHeartbeat(token=self.token, **keys, **self.lists))  # type: ignore[arg-type]

    def on_received(self, received: Received) -> bool:
        """Process a message; after WORK, heartbeats report its id as queued."""
        message = received.message
        if isinstance(message, Work) and not any(message.request_id in ids for ids in self.lists.values()):
            self.lists["queued"].append(message.request_id)
        return super().on_received(received)

    def work(self, request_id: bytes | None = None, seconds: float | None = None) -> tuple[Work, Received]:
        """Wait for WORK."""
        return self.loop.receive(self, Work, lambda each: request_id in (None, each.request_id), seconds=seconds)

    def answer(self, request_id: bytes, *images: bytes, **keys: Any) -> bytes:
        """Send a RESULT; return its header. Heartbeats then report the id as finished.

        `keys`: further fields of the header, which may violate the protocol.
        """
        self.finish(request_id)
        header = pack(
            {
                "type": "result",
                "request_id": request_id,
                "worker": self.ready.name,
                "model": self.ready.models[0],
                "images": [INFO] * max(1, len(images)),
                **keys,
            }
        )
        self.send_header(header, *images)
        return header

    def give_back(self, request_id: bytes) -> None:
        """Return a request with ERROR `returned`."""
        self.forget(request_id)
        self.send(Error(code=RETURNED, message="the worker drains", request_id=request_id))

    def finish(self, request_id: bytes) -> None:
        """Report an id as finished from the next heartbeat on."""
        self.forget(request_id)
        self.lists["finished"].append(request_id)

    def forget(self, request_id: bytes) -> None:
        """Omit an id from the next heartbeat on."""
        for ids in self.lists.values():
            if request_id in ids:
                ids.remove(request_id)


class BrokerBench(Loop):
    """A broker under test, with the peers of one check. Each check uses a model of its own."""

    def __init__(self, frontend: str, backend: str, patience: float) -> None:
        super().__init__(patience)
        self._frontend = frontend
        self._backend = backend
        self.model = f"conformance-{new_id().hex()[:8]}"
        """A model that no other worker serves."""

    def client(self, routing_id: bytes | None = None) -> Client:
        """Return a new client."""
        return Client(self, self._frontend, routing_id)

    def connected_client(self) -> Client:
        """Return a new client that has received a HEARTBEAT."""
        client = self.client()
        client.wait_for_heartbeats(1)
        return client

    def worker(self, **keys: Any) -> Worker:
        """Return a new worker that is not registered yet."""
        return Worker(self, self._backend, [self.model], **keys)

    def registered_worker(self, **keys: Any) -> Worker:
        """Return a new worker that is registered."""
        worker = self.worker(**keys)
        worker.register()
        return worker

    def dispatched(self, **keys: Any) -> tuple[Client, Worker, bytes]:
        """Return a client, a worker, and the id of a request that the worker has received."""
        worker = self.registered_worker()
        client = self.connected_client()
        request_id = client.submit(self.model, **keys)
        worker.work(request_id)
        return client, worker, request_id

    def chunk(self, client: Client, request_id: bytes, offset: int) -> tuple[Chunk, Received]:
        """Wait for the chunk of a payload that begins at an offset."""
        return self.receive(
            client,
            Chunk,
            has(request_id=request_id, offset=offset),
            what=f"expected the CHUNK at {offset}",
        )

    def close(self) -> None:
        """Send GOODBYE from all peers, so that the broker forgets them, and close the sockets."""
        for port in self.ports:
            if isinstance(port, Peer):
                port.send(Goodbye())
        super().close()

"""The broker's core with as many workers, waiting requests and clients as are wanted, and no sockets."""

import random
from collections import deque
from typing import Any

from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.events import FLUSH, Payload, ReceivedFromClient, ReceivedFromWorker, SendToWorker
from imagegen_broker.core.records import Settings
from imagegen_protocol.messages import (
    Ack,
    Cancel,
    ClientHeartbeat,
    ClientMessage,
    Goodbye,
    ImageInfo,
    Ready,
    Result,
    Submit,
    Work,
    WorkerHeartbeat,
)

MODEL = "m"
BATCH = 8
BODY_BYTES = 300
IMAGE_SECONDS = 0.5
"""Of a worker, give or take a quarter; requests come on the core's clock as fast as all workers make them."""


class Rig:
    """A core in a steady state: each request that is answered is followed by another one.

    Where requests wait, all workers are full, with speeds of a quarter up and down; where none do, all have room.
    """

    def __init__(self, *, workers: int, queued: int, clients: int, strategy: str, followed: bool = False) -> None:
        self.core = BrokerCore(
            Settings(
                join_seconds=0.0,  # time stands still here: what waits to be joined would never go
                epoch=bytes(16),
                strategy=strategy,
                interval=1e6,  # beats are measured by themselves
                max_requests=10_000_000,
                max_requests_per_client=10_000_000,
                max_unacknowledged_per_client=10_000_000,
                max_bytes=1 << 40,
                max_bytes_per_client=1 << 40,
                max_clients=10_000_000,
            ),
            0.0,
        )
        self.dice = random.Random(1)
        self.now = 3e6
        self._numbers = 0
        self._followed = followed
        self.clients = [number.to_bytes(16, "big") for number in range(clients)]
        self.workers: list[bytes] = []
        self.given: deque[tuple[bytes, bytes]] = deque()
        """Workers and what they have, the oldest first."""
        self.owner: dict[bytes, bytes] = {}
        """Whose request an id is."""
        for _ in range(workers):
            self.join()
        for client in self.clients:
            self.receive(client, ClientHeartbeat())
        self.settle()
        for number in range(workers * 2 * BATCH + queued if queued else 0):
            self.submit(self.clients[number % clients])
            if number % 256 == 0:
                self.settle()
        self.settle()

    def settle(self) -> list[Any]:
        """Settle, and note what was given to whom."""
        actions = self.core.handle(FLUSH, self.now)
        for action in actions:
            if isinstance(action, SendToWorker) and isinstance(action.message, Work):
                self.given.append((action.worker_id, action.message.request_id))
        return actions

    def receive(self, client: bytes, message: ClientMessage, payload: Payload = ()) -> None:
        """Have the core receive a client's message."""
        self.core.handle(ReceivedFromClient(client, message, payload), self.now)

    def next_id(self) -> bytes:
        """Return a new id."""
        self._numbers += 1
        return self._numbers.to_bytes(16, "big")

    # ---- the measured steps ----------------------------------------------------------------------------

    def join(self) -> bytes:
        """Have one more worker."""
        number = self.next_id()
        seconds = IMAGE_SECONDS * self.dice.uniform(0.75, 1.25)
        ready = Ready(
            worker_id=number,
            name=number.hex(),
            host="host",
            gpu_id=0,
            device="cuda:0",
            backend="none",
            models=[MODEL],
            capacity=2 * BATCH,
            max_batch_size=BATCH,
            seconds_per_image=seconds,
        )
        self.core.handle(ReceivedFromWorker(number, ready, b""), self.now)
        self.workers.append(number)
        return number

    def leave(self, worker: bytes) -> None:
        """Have a worker leave, as one that has died does."""
        self.core.handle(ReceivedFromWorker(worker, Goodbye(), b""), self.now)

    def submit(self, client: bytes) -> bytes:
        """Have a client ask."""
        request_id = self.next_id()
        self.owner[request_id] = client
        submit = Submit(request_id=request_id, progress=self._followed)
        self.receive(client, submit, [bytes(bytearray(BODY_BYTES))])
        return request_id

    def cancel(self, request_id: bytes) -> None:
        """Have a client give a request up, and take the answer."""
        client = self.owner.pop(request_id)
        self.receive(client, Cancel(request_id=request_id))
        self.receive(client, Ack(request_ids=[request_id]))

    def request(self) -> None:
        """One life of a request: asked for, given to a worker, answered, acknowledged; each step is settled."""
        self.now += IMAGE_SECONDS / len(self.workers)
        self.submit(self.dice.choice(self.clients))
        self.settle()
        worker, request_id = self.given.popleft()
        self.core.handle(ReceivedFromWorker(worker, _result(request_id), b"header", [b"image"]), self.now)
        self.settle()
        client = self.owner.pop(request_id)
        self.receive(client, Ack(request_ids=[request_id]))
        self.settle()

    def worker_heartbeat(self) -> None:
        """A worker says what it has: all that it was given, as it was."""
        worker = self.core.workers.by_id[self.dice.choice(self.workers)]
        ids = list(worker.assigned)
        beat = WorkerHeartbeat(
            session=worker.session,
            beat=worker.beat,
            running=ids[:BATCH],
            queued=ids[BATCH:],
            seconds_per_image=worker.seconds_per_image,
        )
        self.core.handle(ReceivedFromWorker(worker.id, beat, b""), self.now)
        self.settle()

    def client_heartbeat(self) -> None:
        """A client says that it lives."""
        self.receive(self.dice.choice(self.clients), ClientHeartbeat())
        self.settle()

    def cancel_one(self) -> None:
        """A request is taken in and given up again."""
        request_id = self.submit(self.dice.choice(self.clients))
        self.settle()
        self.cancel(request_id)
        self.settle()
        while self.given and self.given[-1][1] == request_id:
            self.given.pop()

    def come_and_go(self) -> None:
        """A worker joins, may be given what waits, dies, and what it had goes back to the queue."""
        before = len(self.given)
        worker = self.join()
        self.settle()
        while len(self.given) > before:
            self.given.pop()
        self.leave(worker)
        self.workers.pop()
        self.settle()

    def beats(self) -> None:
        """The tick of an interval: a heartbeat to everybody."""
        self.core.workers.tick(self.now, expire=False)
        self.core.clients.tick(self.now, expire=False)
        self.core.outbox.take()

    def statistics(self) -> None:
        """What a scrape or `/stats` asks for."""
        self.core.statistics(self.now)


def _result(request_id: bytes) -> Result:
    info = ImageInfo(format="png", width=512, height=512, seed=1)
    return Result(request_id=request_id, worker="w", model=MODEL, images=[info])

"""A fleet of the real cores on a simulated network and clock: everything that happens follows from one seed.

Messages between two peers keep their order, as ZeroMQ's do; they are delayed, and lost by chance, when the
receiver is dead, or when it died while they were on their way.
"""

import heapq
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.records import Settings, ToClient
from imagegen_client.core import ClientCore
from imagegen_client.events import Answer, CancelAsked, Dial, Finish, Received, Send, SubmitAsked
from imagegen_protocol import GenerationRequest, encode_request
from imagegen_protocol.frames import decode_broker_to_client, encode
from imagegen_protocol.messages import ImageInfo, Submit
from imagegen_worker.core import events as ev
from imagegen_worker.core.held import HeldLimits
from imagegen_worker.core.identity import Identity
from imagegen_worker.core.model import Model
from imagegen_worker.core.worker import Policy, WorkerCore

MODEL = Model(name="m", num_inference_steps=4, guidance_scale=1.0, width=64, height=64)
POLICY = Policy(held=HeldLimits(seconds=60.0))
"""An answer whose acknowledgement was lost with a broker is held for its time, and then dropped."""
BATCH_SECONDS, IMAGE_SECONDS, BATCH = 0.2, 0.1, 2


class World:
    """Time, the network, and every peer."""

    def __init__(
        self, seed: int, *, brokers: int = 1, workers: int = 3, clients: int = 2, loss: float = 0.0
    ) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.loss = loss
        self.story: list[str] = []
        self.kills = 0
        self.made: defaultdict[bytes, list[str]] = defaultdict(list)
        """Which workers made which request."""
        self.ends: defaultdict[bytes, list[Any]] = defaultdict(list)
        """How each request ended: its images, or the error."""
        self.asked: dict[bytes, int] = {}
        """The seed of each request."""
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = 0
        self._last_arrival: dict[tuple[bytes, bytes], float] = {}
        self.peers: dict[bytes, Peer] = {}
        self.brokers = [b"broker-%d" % index for index in range(brokers)]
        for name in self.brokers:
            self.start_broker(name)
        self.workers: dict[int, WorkerPeer] = {}
        for index in range(workers):
            self.start_worker(index)
        self.clients = [ClientPeer(self, b"client-%d" % index) for index in range(clients)]

    # ---- time -------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (max(when, self.now), self._order, what))

    def run(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            self.now, _, what = heapq.heappop(self._events)
            what()
        self.now = until

    def tell(self, text: str) -> None:
        self.story.append(f"{self.now:9.3f} {text}")

    # ---- network ----------------------------------------------------------------------------------------

    def send(self, source: bytes, target: bytes, arrive: "Callable[[Peer], None]") -> None:
        receiver = self.peers.get(target)
        if receiver is None or self.random.random() < self.loss:
            return
        when = max(self.now + self.random.uniform(0.0005, 0.02), self._last_arrival.get((source, target), 0.0))
        self._last_arrival[source, target] = when
        self.at(when, lambda: self._deliver(receiver, arrive))

    def _deliver(self, receiver: "Peer", arrive: "Callable[[Peer], None]") -> None:
        if not receiver.alive:
            return
        if self.now < receiver.frozen_until:
            self.at(receiver.frozen_until, lambda: self._deliver(receiver, arrive))
            return
        arrive(receiver)

    # ---- faults -----------------------------------------------------------------------------------------

    def start_broker(self, name: bytes) -> None:
        self.tell(f"{name.decode()} starts")
        BrokerPeer(self, name)

    def restart_broker(self, index: int, pause: float = 0.5) -> None:
        name = self.brokers[index]
        self.tell(f"{name.decode()} is killed")
        self.peers.pop(name).alive = False
        self.at(self.now + pause, lambda: self.start_broker(name))

    def start_worker(self, index: int) -> None:
        self.tell(f"worker {index} starts")
        self.workers[index] = WorkerPeer(self, index)

    def restart_worker(self, index: int, pause: float = 1.0) -> None:
        worker = self.workers[index]
        if not worker.alive:
            return
        self.tell(f"worker {index} is killed")
        self.kills += 1
        worker.alive = False
        del self.peers[worker.name]
        self.at(self.now + pause, lambda: self.start_worker(index))

    def freeze_worker(self, index: int, seconds: float) -> None:
        self.tell(f"worker {index} freezes for {seconds:.1f} s")
        self.workers[index].frozen_until = self.now + seconds

    def drain_worker(self, index: int) -> None:
        worker = self.workers[index]
        if worker.alive:
            self.tell(f"worker {index} drains")
            worker.feed(ev.DrainRequested("the simulation"))


class Peer:
    """Something with a core; `wake` keeps its next deadline in the world's calendar."""

    def __init__(self, world: World, name: bytes) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self.frozen_until = 0.0
        self._alarm = 0
        world.peers[name] = self

    def wake_at(self, deadline: float | None) -> None:
        self._alarm += 1
        alarm = self._alarm
        if deadline is not None:
            # A hair late, as real timers are.
            self.world.at(deadline + 1e-6, lambda: self._ring(alarm))

    def _ring(self, alarm: int) -> None:
        if not self.alive or alarm != self._alarm:
            return
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, lambda: self._ring(alarm))
            return
        self.tick()

    def tick(self) -> None:
        raise NotImplementedError


class BrokerPeer(Peer):
    def __init__(self, world: World, name: bytes) -> None:
        super().__init__(world, name)
        self.core = BrokerCore(Settings(epoch=world.random.randbytes(16)), world.now)
        self.tick()

    def from_client(self, peer: bytes, message: Any, payload: Any) -> None:
        self.core.from_client(peer, message, payload, self.world.now)
        self.tick()

    def from_worker(self, peer: bytes, message: Any, payload: Any) -> None:
        self.core.from_worker(peer, message, encode(message), payload, self.world.now)
        self.tick()

    def tick(self) -> None:
        for action in self.core.settle(self.world.now):
            message, payload = action.message, action.payload
            if isinstance(action, ToClient):
                if isinstance(message, bytes):
                    message = decode_broker_to_client(message)
                self._send(action.client_id, message, payload)
            else:
                self._send(action.worker_id, message, payload)
        self.core.validate()
        self.wake_at(self.core.next_deadline())

    def _send(self, target: bytes, message: Any, payload: Any) -> None:
        self.world.send(self.name, target, lambda peer: peer.from_broker(self.name, message, payload))


class ClientPeer(Peer):
    def __init__(self, world: World, name: bytes) -> None:
        super().__init__(world, name)
        self.core = ClientCore([broker.decode() for broker in world.brokers])
        self.broker = b""

    def ask(self, timeout: float | None = None) -> bytes:
        request_id = self.world.random.randbytes(16)
        seed = self.world.random.randrange(1000)
        self.world.asked[request_id] = seed
        body = encode_request(GenerationRequest(prompt="p", seed=seed))
        submit = Submit(request_id=request_id, timeout_seconds=timeout)
        self.do(self.core.handle(SubmitAsked(submit, [body]), self.world.now))
        return request_id

    def cancel(self, request_id: bytes) -> None:
        self.do(self.core.handle(CancelAsked(request_id), self.world.now))

    def from_broker(self, broker: bytes, message: Any, payload: Any) -> None:
        if broker == self.broker:
            self.do(self.core.handle(Received(message, payload), self.world.now))

    def tick(self) -> None:
        self.do(self.core.tick(self.world.now))

    def do(self, actions: list[Any]) -> None:
        for action in [*actions, *self.core.settle()]:
            match action:
                case Dial(endpoint):
                    self.broker = endpoint.encode()
                case Send(message, payload):
                    self.world.send(self.name, self.broker, self._arrival(message, payload))
                case Finish(key, Answer(_, payload)):
                    self.world.ends[key].append(tuple(payload))
                case Finish(key, error):
                    self.world.ends[key].append(error)
        self.wake_at(self.core.next_deadline())

    def _arrival(self, message: Any, payload: Any) -> Callable[[Any], None]:
        return lambda peer: peer.from_client(self.name, message, payload)


class WorkerPeer(Peer):
    """A worker core and an engine that batches what waits, as long as its cost model says."""

    def __init__(self, world: World, index: int) -> None:
        self.index = index
        super().__init__(world, b"worker-%d-" % index + world.random.randbytes(4))
        identity = Identity(
            worker_id=world.random.randbytes(16),
            name=f"worker-{index}",
            host="h",
            gpu_id=index,
            backend="simulation",
            capacity=2 * BATCH,
            max_batch_size=BATCH,
            batching="static",
            pid=1,
        )
        self.core = WorkerCore(identity, links=len(world.brokers), policy=POLICY, now=world.now)
        self._jobs: list[ev.Job] = []
        self._running = False
        self.feed(ev.Warm((MODEL,), "cpu", None))

    def from_broker(self, broker: bytes, message: Any, payload: Any) -> None:
        link = self.world.brokers.index(broker)
        self.feed(ev.Received(link, message, tuple(bytes(frame) for frame in payload)))

    def feed(self, event: Any) -> None:
        self.do(self.core.handle(event, self.world.now))

    def tick(self) -> None:
        self.do(self.core.tick(self.world.now))

    def do(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case ev.Send(link, message, frames):
                    self.world.send(self.name, self.world.brokers[link], self._arrival(message, frames))
                case ev.Job():
                    self._jobs.append(action)
                case ev.Cancel(number):
                    self._jobs = [job for job in self._jobs if job.number != number]
                case ev.Exit():
                    self.alive = False
                    del self.world.peers[self.name]
                    self.world.at(self.world.now + 1.0, lambda: self.world.start_worker(self.index))
                    return
        self.wake_at(self.core.next_deadline())
        if self._jobs and not self._running:
            self._running = True
            self.world.at(self.world.now + 0.01, self._start)

    def _arrival(self, message: Any, frames: Any) -> Callable[[Any], None]:
        return lambda peer: peer.from_worker(self.name, message, frames)

    def _start(self) -> None:
        if not self.alive or self._is_frozen(self._start):
            return
        batch, self._jobs = self._jobs[:BATCH], self._jobs[BATCH:]
        if not batch:
            self._running = False
            return
        self.feed(ev.Started(tuple(job.number for job in batch)))
        seconds = BATCH_SECONDS + IMAGE_SECONDS * len(batch)
        self.world.at(self.world.now + seconds, lambda: self._end(batch))

    def _end(self, batch: list[ev.Job]) -> None:
        if not self.alive or self._is_frozen(lambda: self._end(batch)):
            return
        count = len(batch)
        for job in batch:
            held = self.core.held.by_number(job.number)
            if held is not None:
                self.world.made[held.id].append(f"worker {self.index}")
            image = b"image of seed %d" % job.request.seeds[0]
            info = ImageInfo(format="png", width=64, height=64, seed=job.request.seeds[0])
            self.feed(
                ev.Finished(
                    number=job.number,
                    images=(image,),
                    infos=(info,),
                    batch_size=count,
                    queue_seconds=0.0,
                    generation_seconds=0.1,
                    encode_seconds=0.0,
                )
            )
        self.feed(ev.CallDone(requests=count, images=count, steps=4, seconds=0.3, seconds_per_image=0.2))
        self.feed(ev.Idle())
        self._running = False
        self.do([])

    def _is_frozen(self, again: Callable[[], None]) -> bool:
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until, again)
            return True
        return False

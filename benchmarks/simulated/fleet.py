"""A broker, workers and clients: the real cores, with simulated shells, devices, links and time."""

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from benchmarks.simulated.clock import Alarm, Clock
from benchmarks.simulated.continuous import ContinuousDevice, ForwardCost
from benchmarks.simulated.device import Cost, Device
from imagegen_broker.core.broker import BrokerCore
from imagegen_broker.core.events import (
    FLUSH,
    ReceivedFromClient,
    ReceivedFromWorker,
    SendFailed,
    SendToClient,
    SendToWorker,
)
from imagegen_broker.core.records import Settings
from imagegen_client.core import ClientCore
from imagegen_client.events import (
    Answer,
    CloseRequested,
    Complete,
    Received,
    Send,
    StatsRequested,
    SubmitRequested,
    Tick,
)
from imagegen_protocol import GenerationRequest, encode_request
from imagegen_protocol.costs import shape_of
from imagegen_protocol.messages import Stats, Submit, WorkerReport
from imagegen_worker.backends.simulated import MODEL
from imagegen_worker.core import events as ev
from imagegen_worker.core.state import WorkerIdentity, WorkerLimits
from imagegen_worker.core.worker import WorkerCore

LINK_SECONDS = 0.0002
"""From one process to another."""
LOOP_SECONDS = 0.0002
"""From the first message that a broker reads to its settling: what comes meanwhile is settled with it."""

Done = Callable[[bytes, Any], None]
"""Is told the id of a request that has ended, and its outcome."""


class BrokerPeer:
    """The broker: its core, and the habits of its shell."""

    def __init__(self, clock: Clock, **settings: Any) -> None:
        self.clock = clock
        self.peers: dict[bytes, WorkerPeer | ClientPeer] = {}
        """Those whose connection stands, by routing id."""
        self.seconds = 0.0
        """CPU time that the core has taken."""
        self.core = BrokerCore(Settings(epoch=bytes(16), step_timeout=None, **settings), clock.now)
        self._settling = False
        self._alarm = Alarm(clock, self._settle)
        self._alarm.set(self.core.next_deadline())

    def hear_client(self, client_id: bytes, message: Any, frames: Sequence[Any]) -> None:
        """A client's message has arrived."""
        begun = time.thread_time()
        self.core.handle(ReceivedFromClient(client_id, message, frames), self.clock.now)
        self.seconds += time.thread_time() - begun
        self._soon()

    def hear_worker(self, worker_id: bytes, message: Any, frames: Sequence[Any]) -> None:
        """A worker's message has arrived. The core passes its header on unread, so it need not be bytes here."""
        begun = time.thread_time()
        self.core.handle(ReceivedFromWorker(worker_id, message, message, frames), self.clock.now)
        self.seconds += time.thread_time() - begun
        self._soon()

    def _soon(self) -> None:
        if not self._settling:
            self._settling = True
            self.clock.after(LOOP_SECONDS, self._settle_what_came)

    def _settle_what_came(self) -> None:
        self._settling = False
        self._alarm.set(self._settle())

    def _settle(self) -> float:
        begun = time.thread_time()
        actions = self.core.handle(FLUSH, self.clock.now)
        deadline = self.core.next_deadline()
        self.seconds += time.thread_time() - begun
        for action in actions:
            if not isinstance(action, SendToClient | SendToWorker):
                continue
            peer = self.peers.get(action.client_id if isinstance(action, SendToClient) else action.worker_id)
            if peer is None:
                self.core.handle(SendFailed(action), self.clock.now)
            else:
                self.clock.after(LINK_SECONDS, peer.hear, action.message, action.payload)
        return deadline


class WorkerPeer:
    """One run of a worker: its core and its device."""

    def __init__(
        self,
        broker: BrokerPeer,
        name: str,
        cost: Cost | ForwardCost,
        *,
        host: str = "host",
        run: int = 0,
        max_batch_size: int = 8,
        max_wait: float = 0.05,
        drain_seconds: float = 30.0,
        left: Callable[[], None] = lambda: None,
    ) -> None:
        """`left` is called when the process has ended by itself, as it does after a drain."""
        self.id = f"{name}.{run}".encode()
        self.alive = True
        self._left = left
        self._broker = broker
        self._clock = broker.clock
        self.core = WorkerCore(
            WorkerIdentity(
                worker_id=self.id.ljust(16, b"\0")[-16:],
                name=name,
                host=host,
                gpu_id=0,
                backend="simulated",
                capacity=2 * max_batch_size,
                max_batch_size=max_batch_size,
                batching="static" if isinstance(cost, Cost) else "continuous",
                pid=1,
            ),
            brokers=1,
            limits=WorkerLimits(drain_seconds=drain_seconds, step_timeout=None),
            now=self._clock.now,
        )
        self._reported = {MODEL.name: cost.reported}
        self.device: Device | ContinuousDevice
        if isinstance(cost, Cost):
            self.device = Device(
                self._clock, cost, max_batch_size=max_batch_size, max_wait=max_wait, post=self._posted
            )
        else:
            self.device = ContinuousDevice(self._clock, cost, max_batch_size=max_batch_size, post=self._posted)
        self._alarm = Alarm(self._clock, self._tick)
        broker.peers[self.id] = self
        self._feed(ev.EngineReady((MODEL,), "simulated", self.device.seconds_per_image))

    def hear(self, message: Any, frames: Sequence[Any]) -> None:
        """A message of the broker has arrived."""
        if self.alive:
            self._feed(ev.Received(0, message, tuple(frames)))

    def drain(self) -> None:
        """As SIGTERM does."""
        if self.alive:
            self._feed(ev.DrainRequested("a rollout"))

    def die(self) -> None:
        """As SIGKILL does; nobody is told."""
        self.alive = False
        self._broker.peers.pop(self.id, None)

    def _posted(self, event: ev.Event) -> None:
        if self.alive:
            self._feed(event)

    def _feed(self, event: ev.Event) -> None:
        self._do(self.core.handle(event, self._clock.now))
        self._alarm.set(self.core.next_deadline())

    def _tick(self) -> float | None:
        if not self.alive:
            return None
        self._do(self.core.handle(ev.Tick(), self._clock.now))
        return self.core.next_deadline()

    def _do(self, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case ev.Send(_, message, frames):
                    if isinstance(message, WorkerReport):
                        message = replace(message, costs=self._reported)
                    self._clock.after(LINK_SECONDS, self._broker.hear_worker, self.id, message, frames)
                case ev.Job() | ev.Cancel():
                    self.device.obey(action)
                case ev.Exit():
                    self.die()
                    self._left()


class ClientPeer:
    """A client: its core, and an application that asks."""

    def __init__(self, broker: BrokerPeer, name: str, done: Done, dice: random.Random) -> None:
        self.id = name.encode()
        self._broker = broker
        self._clock = broker.clock
        self._done = done
        self._dice = dice
        self.core = ClientCore(["broker"], retry_overloaded=True)
        self._alarm = Alarm(self._clock, self._tick)
        broker.peers[self.id] = self

    def open(self) -> None:
        """Dial, as a question for statistics would have it do."""
        self._do(self.core.handle(StatsRequested(self._dice.randbytes(16), 60.0), self._clock.now))
        self._alarm.set(self.core.next_deadline())

    def ask(self, request: GenerationRequest, priority: int = 0) -> bytes:
        """Submit a request; return its id."""
        key = self._dice.randbytes(16)
        header = Submit(request_id=key, priority=priority, shape=shape_of(request))
        submit = SubmitRequested(header, [encode_request(request)])
        self._do(self.core.handle(submit, self._clock.now))
        self._alarm.set(self.core.next_deadline())
        return key

    def close(self) -> None:
        """Leave."""
        self._do(self.core.handle(CloseRequested(), self._clock.now))

    def hear(self, message: Any, frames: Sequence[Any]) -> None:
        """A message of the broker has arrived."""
        self._do(self.core.handle(Received(message, frames), self._clock.now))
        self._do(self.core.handle(Tick(), self._clock.now))
        self._alarm.set(self.core.next_deadline())

    def _tick(self) -> float | None:
        self._do(self.core.handle(Tick(), self._clock.now))
        return self.core.next_deadline()

    def _do(self, actions: Sequence[Any]) -> None:
        for action in actions:
            match action:
                case Send(message, payload):
                    self._clock.after(LINK_SECONDS, self._broker.hear_client, self.id, message, payload)
                case Complete(key, Answer(message)):
                    if not isinstance(message, Stats):
                        self._done(key, None)
                case Complete(key, error):
                    self._done(key, error)

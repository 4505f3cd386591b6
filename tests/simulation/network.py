"""Simulated connections of ZeroMQ: ordered, reopened by the connecting side, refused without a listener.

A link transfers its messages one after the other, at the speed of its link: a small message waits for the large
ones before it.

Like libzmq: a DEALER queues messages while it is not connected. A ROUTER reports a peer that has disconnected or
reads too slowly (`not_sent`). A connection that breaks loses the messages in transit to the connecting side;
messages in transit to the broker may still arrive, after messages of the next connection. So the order holds only
within one connection.
ZeroMQ delivers no message twice within a connection. A plan may have `duplicates` nevertheless: they stand for
peers that send a message again.
"""

from collections.abc import Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from imagegen_protocol.messages import Chunk
from imagegen_protocol.transfers import INITIAL_WINDOW_BYTES
from tests.simulation import invariants
from tests.simulation.speed import Speed, payload_bytes, wire_bytes

if TYPE_CHECKING:
    from tests.simulation.brokers import BrokerPeer
    from tests.simulation.peers import Peer
    from tests.simulation.world import World

UP, DOWN = 0, 1
"""Directions: to the broker, from the broker."""
HIGH_WATER_MARK = 12
"""Messages in transit to one client above which a broker's socket accepts no more for it."""
LATE = -2


class Link:
    """The connections of a process to a broker's name, one after the other, numbered by `generation`."""

    __slots__ = (
        "broker",
        "busy_until",
        "chunk_bytes",
        "closed",
        "dialer",
        "dropped_until",
        "ended_at",
        "generation",
        "id",
        "kept",
        "last",
        "name",
        "outstanding",
        "shift",
        "speed",
        "stalled_until",
        "waiting",
    )

    def __init__(self, dialer: "Peer", name: str, number: int, speed: Speed) -> None:
        self.speed = speed
        self.busy_until = [0.0, 0.0]
        """Time at which the last message sent in each direction is transferred."""
        self.chunk_bytes = 0
        """Bytes of CHUNKs that the broker has sent and the process has not read."""
        self.dialer = dialer
        self.name = name
        self.id = f"{dialer.name}/{number}".encode() if dialer.is_client else dialer.id
        """The routing id; a client uses a new one for each socket."""
        self.broker: BrokerPeer | None = None
        self.generation = 0
        self.kept = -1
        """The previous generation, if its messages in transit to the broker still arrive."""
        self.shift = 0.0
        self.last = [0.0, 0.0]
        self.stalled_until = [0.0, 0.0]
        self.dropped_until = [0.0, 0.0]
        self.waiting: list[tuple[Any, Sequence[Any]]] = []
        self.outstanding = 0
        self.closed = False
        self.ended_at = inf
        """Time at which the host of the process was lost; nothing is sent afterwards."""


class Network:
    """All links, and the messages in transit."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.loss = 0.0
        self.duplicates = world.plan.duplicates
        """Share of the messages that are delivered twice."""
        self.links: dict[tuple[str, str], Link] = {}
        """Lines by the names of process and broker."""
        self._dials = 0

    # ---- connections ------------------------------------------------------------------------------------

    def dial(self, dialer: "Peer", name: str) -> Link:
        """Open a new link, which replaces an existing one."""
        self._dials += 1
        link = Link(dialer, name, self._dials, self.world.plan.speed_of(dialer))
        self.links[dialer.name, name] = link
        self.world.after(self.world.rng.uniform(0.001, 0.05), self.connect, link)
        return link

    def connect(self, link: Link) -> None:
        """Try to connect; without a listener, the start of the broker causes another attempt."""
        world = self.world
        broker = world.broker_named(link.name)
        if link.closed or not link.dialer.alive or link.broker is not None or broker is None:
            return
        blocked = max(*link.stalled_until, *link.dropped_until)
        if blocked > world.now:
            world.at(blocked + world.rng.uniform(0.01, 0.5), self.connect, link)
            return
        link.broker = broker
        broker.links[link.id] = link
        waiting, link.waiting = link.waiting, []
        for message, frames in waiting:
            self._transmit(link, UP, message, frames)

    def listen(self, name: str) -> None:
        """Start listening under a name: processes with links to it connect within a second."""
        for link in self.links.values():
            if link.name == name and link.broker is None:
                self.world.after(self.world.rng.uniform(0.02, 0.8), self.connect, link)

    def stop_listening(self, broker: "BrokerPeer") -> None:
        """Break all connections of a dead broker; their messages in transit are lost."""
        for link in broker.links.values():
            if link.broker is broker:
                self._disconnect(link, keep=False)
        broker.links.clear()

    def reset(self, link: Link, *, keep: bool) -> None:
        """Break a connection; `keep`: messages in transit to the broker still arrive, but late."""
        if link.broker is None or link.closed:
            return
        self.record_fault(link, self.world.now)
        broker = link.broker
        if broker.links.get(link.id) is link:
            del broker.links[link.id]
        self._disconnect(link, keep=keep)
        self.world.after(self.world.rng.uniform(0.02, 0.8), self.connect, link)

    def _disconnect(self, link: Link, *, keep: bool) -> None:
        link.kept = link.generation if keep else -1
        link.shift = self.world.rng.uniform(0.0, 0.6)
        link.generation += 1
        link.broker = None
        link.last = [0.0, 0.0]
        link.busy_until = [0.0, 0.0]
        link.outstanding = link.chunk_bytes = 0

    def close(self, link: Link, *, silently: bool = False) -> None:
        """Close the link of a dead process; `silently`: the broker's connection stays open."""
        link.closed = True
        if silently:
            link.ended_at = self.world.now
        broker = link.broker
        if broker is not None and not silently and broker.links.get(link.id) is link:
            del broker.links[link.id]
        if self.links.get((link.dialer.name, link.name)) is link:
            del self.links[link.dialer.name, link.name]

    def record_fault(self, link: Link, until: float) -> None:
        """Record that a link had a fault until a time."""
        faults, key = self.world.record.link_faults, (link.dialer.name, link.name)
        faults[key] = max(faults.get(key, 0.0), until)

    # ---- messages ---------------------------------------------------------------------------------------

    def send_up(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        """Send a message to the broker, or queue it until there is a connection."""
        if link.broker is None:
            link.waiting.append((message, frames))
        else:
            self._transmit(link, UP, message, frames)

    def send_down(self, broker: "BrokerPeer", peer_id: bytes, message: Any, frames: Sequence[Any]) -> bool:
        """Send a message to a peer of a broker; return False if its connection is closed or full."""
        link = broker.links.get(peer_id)
        if link is None or (link.dialer.is_client and link.outstanding >= HIGH_WATER_MARK):
            return False
        self._transmit(link, DOWN, message, frames)
        return True

    def _transmit(self, link: Link, direction: int, message: Any, frames: Sequence[Any]) -> None:
        world = self.world
        world.record.messages += 1
        now = world.now
        if (self.loss and world.rng.random() < self.loss) or link.dropped_until[direction] > now:
            self.record_fault(link, now)
            self._lost(link, direction, message)
            return
        start = max(now, link.stalled_until[direction], link.busy_until[direction])
        when = max(self._transferred(link, direction, start, message, frames), link.last[direction])
        link.last[direction] = when
        if direction == DOWN and isinstance(message, Chunk):
            size = payload_bytes(frames)
            link.chunk_bytes += size
            invariants.on_chunk_sent(world, link)
            if link.dialer.is_greedy and size > INITIAL_WINDOW_BYTES // 2:
                # Other messages wait behind a chunk that the core of the client would not have requested.
                link.dialer.last_fault = max(link.dialer.last_fault, when)
        self._arrive_at(when, link, direction, start, message, frames)
        if self.duplicates and world.rng.random() < self.duplicates:
            self._arrive_at(when + 0.1 * world.rng.random(), link, direction, start, message, frames)

    def _transferred(self, link: Link, direction: int, start: float, message: Any, frames: Sequence[Any]) -> float:
        """Occupy the link with a message from `start` on; return the time of arrival."""
        speed = link.speed
        rate = speed.up if direction == UP else speed.down
        link.busy_until[direction] = ended = start + wire_bytes(message, frames) / rate
        return ended + speed.latency + 0.0005 + 0.0195 * self.world.rng.random()

    def _arrive_at(
        self, when: float, link: Link, direction: int, start: float, message: Any, frames: Sequence[Any]
    ) -> None:
        if direction == UP:
            self.world.at(when, self._arrive_up, link, link.generation, start, link.broker, message, frames)
        else:
            link.outstanding += 1
            self.world.at(when, self._arrive_down, link, link.generation, message, frames)

    def _arrive_up(
        self,
        link: Link,
        generation: int,
        start: float,
        broker: "BrokerPeer",
        message: Any,
        frames: Sequence[Any],
    ) -> None:
        if start > link.ended_at:
            self._lost(link, UP, message)
            return
        if generation not in (link.generation, LATE):
            if generation == link.kept:
                self.world.after(link.shift, self._arrive_up, link, LATE, start, broker, message, frames)
                return
            self._lost(link, UP, message)
            return
        if not broker.alive:
            self._lost(link, UP, message)
            return
        broker.receive(link, message, frames)

    def _arrive_down(self, link: Link, generation: int, message: Any, frames: Sequence[Any]) -> None:
        if generation != link.generation or link.closed or not link.dialer.alive:
            self._lost(link, DOWN, message)
            return
        link.dialer.receive(link, message, frames)

    def read(self, link: Link, message: Any, frames: Sequence[Any]) -> None:
        """Record that the process has read a message."""
        link.outstanding -= 1
        if isinstance(message, Chunk):
            link.chunk_bytes = max(0, link.chunk_bytes - payload_bytes(frames))

    def _lost(self, link: Link, direction: int, message: Any) -> None:
        if direction == DOWN:
            self.world.released_on_arrival(link.dialer, message)
        if self.world.recording:
            arrow = "->" if direction == UP else "<-"
            self.world.log_message(f"LOST {link.dialer.name} {arrow} {link.name}", message)

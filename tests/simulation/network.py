"""Simulated connections of ZeroMQ: ordered, reopened by the connecting side, refused without a listener.

A line transfers its messages one after the other, at the speed of its link: a small message waits for the large
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


class Line:
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
    """All lines, and the messages in transit."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.loss = 0.0
        self.duplicates = world.plan.duplicates
        """Share of the messages that are delivered twice."""
        self.lines: dict[tuple[str, str], Line] = {}
        """Lines by the names of process and broker."""
        self._dials = 0

    # ---- connections ------------------------------------------------------------------------------------

    def dial(self, dialer: "Peer", name: str) -> Line:
        """Open a new line, which replaces an existing one."""
        self._dials += 1
        line = Line(dialer, name, self._dials, self.world.plan.speed_of(dialer))
        self.lines[dialer.name, name] = line
        self.world.after(self.world.dice.uniform(0.001, 0.05), self.connect, line)
        return line

    def connect(self, line: Line) -> None:
        """Try to connect; without a listener, the start of the broker causes another attempt."""
        world = self.world
        broker = world.broker_named(line.name)
        if line.closed or not line.dialer.alive or line.broker is not None or broker is None:
            return
        blocked = max(*line.stalled_until, *line.dropped_until)
        if blocked > world.now:
            world.at(blocked + world.dice.uniform(0.01, 0.5), self.connect, line)
            return
        line.broker = broker
        broker.lines[line.id] = line
        waiting, line.waiting = line.waiting, []
        for message, frames in waiting:
            self._transmit(line, UP, message, frames)

    def listen(self, name: str) -> None:
        """Start listening under a name: processes with lines to it connect within a second."""
        for line in self.lines.values():
            if line.name == name and line.broker is None:
                self.world.after(self.world.dice.uniform(0.02, 0.8), self.connect, line)

    def unlisten(self, broker: "BrokerPeer") -> None:
        """Break all connections of a dead broker; their messages in transit are lost."""
        for line in broker.lines.values():
            if line.broker is broker:
                self._disconnect(line, keep=False)
        broker.lines.clear()

    def reset(self, line: Line, *, keep: bool) -> None:
        """Break a connection; `keep`: messages in transit to the broker still arrive, but late."""
        if line.broker is None or line.closed:
            return
        self.in_trouble(line, self.world.now)
        broker = line.broker
        if broker.lines.get(line.id) is line:
            del broker.lines[line.id]
        self._disconnect(line, keep=keep)
        self.world.after(self.world.dice.uniform(0.02, 0.8), self.connect, line)

    def _disconnect(self, line: Line, *, keep: bool) -> None:
        line.kept = line.generation if keep else -1
        line.shift = self.world.dice.uniform(0.0, 0.6)
        line.generation += 1
        line.broker = None
        line.last = [0.0, 0.0]
        line.busy_until = [0.0, 0.0]
        line.outstanding = line.chunk_bytes = 0

    def hang_up(self, line: Line, *, silently: bool = False) -> None:
        """Close the line of a dead process; `silently`: the broker's connection stays open."""
        line.closed = True
        if silently:
            line.ended_at = self.world.now
        broker = line.broker
        if broker is not None and not silently and broker.lines.get(line.id) is line:
            del broker.lines[line.id]
        if self.lines.get((line.dialer.name, line.name)) is line:
            del self.lines[line.dialer.name, line.name]

    def in_trouble(self, line: Line, until: float) -> None:
        """Record that a line had a fault until a time."""
        trouble, key = self.world.witness.trouble, (line.dialer.name, line.name)
        trouble[key] = max(trouble.get(key, 0.0), until)

    # ---- messages ---------------------------------------------------------------------------------------

    def send_up(self, line: Line, message: Any, frames: Sequence[Any]) -> None:
        """Send a message to the broker, or queue it until there is a connection."""
        if line.broker is None:
            line.waiting.append((message, frames))
        else:
            self._transmit(line, UP, message, frames)

    def send_down(self, broker: "BrokerPeer", peer_id: bytes, message: Any, frames: Sequence[Any]) -> bool:
        """Send a message to a peer of a broker; return False if its connection is closed or full."""
        line = broker.lines.get(peer_id)
        if line is None or (line.dialer.is_client and line.outstanding >= HIGH_WATER_MARK):
            return False
        self._transmit(line, DOWN, message, frames)
        return True

    def _transmit(self, line: Line, direction: int, message: Any, frames: Sequence[Any]) -> None:
        world = self.world
        world.witness.messages += 1
        now = world.now
        if (self.loss and world.dice.random() < self.loss) or line.dropped_until[direction] > now:
            self.in_trouble(line, now)
            self._lost(line, direction, message)
            return
        begun = max(now, line.stalled_until[direction], line.busy_until[direction])
        when = max(self._transferred(line, direction, begun, message, frames), line.last[direction])
        line.last[direction] = when
        if direction == DOWN and isinstance(message, Chunk):
            size = payload_bytes(frames)
            line.chunk_bytes += size
            invariants.on_chunk_sent(world, line)
            if line.dialer.is_greedy and size > INITIAL_WINDOW_BYTES // 2:
                # Other messages wait behind a chunk that the core of the client would not have asked for.
                line.dialer.trouble = max(line.dialer.trouble, when)
        self._arrive_at(when, line, direction, begun, message, frames)
        if self.duplicates and world.dice.random() < self.duplicates:
            self._arrive_at(when + 0.1 * world.dice.random(), line, direction, begun, message, frames)

    def _transferred(self, line: Line, direction: int, begun: float, message: Any, frames: Sequence[Any]) -> float:
        """Occupy the line with a message from `begun` on; return the time of arrival."""
        speed = line.speed
        rate = speed.up if direction == UP else speed.down
        line.busy_until[direction] = ended = begun + wire_bytes(message, frames) / rate
        return ended + speed.latency + 0.0005 + 0.0195 * self.world.dice.random()

    def _arrive_at(
        self, when: float, line: Line, direction: int, begun: float, message: Any, frames: Sequence[Any]
    ) -> None:
        if direction == UP:
            self.world.at(when, self._arrive_up, line, line.generation, begun, line.broker, message, frames)
        else:
            line.outstanding += 1
            self.world.at(when, self._arrive_down, line, line.generation, message, frames)

    def _arrive_up(
        self,
        line: Line,
        generation: int,
        begun: float,
        broker: "BrokerPeer",
        message: Any,
        frames: Sequence[Any],
    ) -> None:
        if begun > line.ended_at:
            self._lost(line, UP, message)
            return
        if generation not in (line.generation, LATE):
            if generation == line.kept:
                self.world.after(line.shift, self._arrive_up, line, LATE, begun, broker, message, frames)
                return
            self._lost(line, UP, message)
            return
        if not broker.alive:
            self._lost(line, UP, message)
            return
        broker.hear(line, message, frames)

    def _arrive_down(self, line: Line, generation: int, message: Any, frames: Sequence[Any]) -> None:
        if generation != line.generation or line.closed or not line.dialer.alive:
            self._lost(line, DOWN, message)
            return
        line.dialer.hear(line, message, frames)

    def read(self, line: Line, message: Any, frames: Sequence[Any]) -> None:
        """Record that the process has read a message."""
        line.outstanding -= 1
        if isinstance(message, Chunk):
            line.chunk_bytes = max(0, line.chunk_bytes - payload_bytes(frames))

    def _lost(self, line: Line, direction: int, message: Any) -> None:
        if direction == DOWN:
            self.world.released_on_arrival(line.dialer, message)
        if self.world.recording:
            arrow = "->" if direction == UP else "<-"
            self.world.tell_message(f"LOST {line.dialer.name} {arrow} {line.name}", message)

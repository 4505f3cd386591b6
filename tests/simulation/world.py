"""A fleet of real cores on a simulated network, clock and device, determined by one seed."""

import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from imagegen_protocol.messages import BrokerHeartbeat, Release
from tests.simulation import invariants
from tests.simulation.brokers import BrokerPeer
from tests.simulation.clients import ClientPeer
from tests.simulation.faults import FAULTS
from tests.simulation.fleet_record import FleetRecord
from tests.simulation.history import History
from tests.simulation.load import schedule_load
from tests.simulation.network import Network
from tests.simulation.peers import Peer
from tests.simulation.plan import FAULTS_END, Plan
from tests.simulation.workers import WorkerPeer

MAX_SECONDS = 400.0
"""Seconds after which a fleet that is not idle counts as stuck."""
IDLE_SECONDS = 2.5
"""Seconds for which an idle fleet is still observed."""


class World:
    """The simulated time, the network, and all processes."""

    def __init__(self, plan: Plan, *, recording: bool = False) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed * 2 + 1)
        self.now = 0.0
        self.recording = recording
        self.history = History(self)
        self.record = FleetRecord()
        self.network = Network(self)
        self._events: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._runs: Counter[str] = Counter()
        self.brokers: list[BrokerPeer | None] = [None] * plan.brokers
        self.workers: list[WorkerPeer | None] = [None] * plan.workers
        self.clients: list[ClientPeer] = []
        for index in range(plan.brokers):
            self.start_broker(index)
        for index in range(plan.workers):
            self.start_worker(index)
        for index in range(plan.clients):
            self.clients.append(ClientPeer(self, index))
        schedule_load(self)
        for fault in plan.faults:
            self.at(fault.at, self._inject, fault)

    # ---- time -------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call `what` at a time."""
        self._order += 1
        heapq.heappush(self._events, (when, self._order, what, arguments))

    def after(self, seconds: float, what: Callable[..., None], *arguments: Any) -> None:
        """Call `what` after a while."""
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, what, arguments))

    def _run_until(self, end: float) -> None:
        events, pop = self._events, heapq.heappop
        while events and events[0][0] <= end:
            self.now, _, what, arguments = pop(events)
            what(*arguments)
        self.now = end

    def run(self) -> None:
        """Run the fleet to its end. Raises `Violation` if an invariant is violated."""
        self._run_until(FAULTS_END)
        self.log("---- no faults from here on ----")
        while not invariants.is_idle(self):
            if self.now > MAX_SECONDS:
                break
            self._run_until(self.now + 1.0)
        self._run_until(self.now + IDLE_SECONDS)
        invariants.run_final_checks(self)

    # ---- processes --------------------------------------------------------------------------------------

    def runs(self, name: str) -> int:
        """Return the number of runs of a process so far, this one included."""
        self._runs[name] += 1
        return self._runs[name]

    def broker_named(self, name: str) -> BrokerPeer | None:
        """Return the broker that listens under a name now."""
        return self.brokers[int(name.rpartition(" ")[2])]

    def start_broker(self, index: int) -> None:
        """Start a broker, unless it runs."""
        if self.brokers[index] is None:
            broker = self.brokers[index] = BrokerPeer(self, index)
            self.log(f"{broker.name} starts")
            self.network.listen(broker.address)

    def kill_broker(self, index: int, pause: float) -> None:
        """Kill a broker, and restart it after a pause."""
        broker = self.brokers[index]
        if broker is None:
            return
        self.log(f"{broker.name} is killed")
        broker.alive = False
        self.record.last_broker_kill = self.now
        self.brokers[index] = None
        self.network.stop_listening(broker)
        self.after(pause, self.start_broker, index)

    def start_worker(self, index: int) -> None:
        """Start a worker, unless it runs."""
        old = self.workers[index]
        if old is None or not old.alive:
            self.workers[index] = worker = WorkerPeer(self, index)
            self.log(f"{worker.name} starts")

    def start_worker_later(self, index: int, pause: float) -> None:
        """Start a worker after a pause, as systemd does."""
        self.after(pause, self.start_worker, index)

    def kill_worker(self, worker: WorkerPeer, pause: float, *, silently: bool, why: str = "") -> None:
        """Kill a worker, `silently` with its host; start another one after a pause."""
        if not worker.alive:
            return
        self.log(f"{worker.name} is {'cut off with its host' if silently else 'killed'} {why}".rstrip())
        invariants.on_worker_killed(self, worker)
        worker.kill(silently=silently)
        self.start_worker_later(worker.index, pause)

    def replace_client(self, client: ClientPeer, pause: float) -> None:
        """Replace a client that has ended by a new one after a pause."""

        def start() -> None:
            fresh = ClientPeer(self, client.index)
            self.log(f"{fresh.name} starts")
            self.clients[client.index] = fresh

        self.after(pause, start)

    def processes(self) -> list[Peer]:
        """Return all live processes."""
        return [peer for peer in (*self.brokers, *self.workers, *self.clients) if peer is not None and peer.alive]

    def _inject(self, fault: Any) -> None:
        if FAULTS[fault.kind](self, fault):
            self.record.faults[fault.kind] += 1

    # ---- records ----------------------------------------------------------------------------------------

    def released_on_arrival(self, worker: Peer, message: Any) -> None:
        """Record that a RELEASE has arrived or was lost."""
        if isinstance(message, Release):
            self.record.releases.subtract((worker.id, request_id) for request_id in message.request_ids)

    def log(self, text: str, key: bytes | None = None) -> None:
        """Add a line to the history; without `key` it concerns all requests."""
        if self.recording:
            self.history.add(self.now, text, None if key is None else [key])

    def log_message(self, text: str, message: Any) -> None:
        """Add a line about a message to the history of the requests that it names."""
        if not isinstance(message, BrokerHeartbeat):
            self.history.add_message(self.now, text, message)

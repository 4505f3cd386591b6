"""Any order of any messages leaves the books in agreement and bounded, and no work beside free room."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from imagegen_broker.core.events import SendFailed, SendToClient, SendToWorker
from imagegen_broker.scheduling.strategies import STRATEGIES
from imagegen_protocol.messages import (
    Accepted,
    Chunk,
    ClientHeartbeat,
    Drain,
    Fetch,
    Goodbye,
    ImageInfo,
    Result,
    Submit,
    Work,
)
from tests.unit.broker.bench import Bench, rid

numbers = st.integers(0, 12)
clients = st.sampled_from(["a", "b"])
workers = st.sampled_from(["u", "v", "w"])
id_lists = st.lists(numbers.map(rid), max_size=5, unique=True)
ages = st.sampled_from([None, None, 1.0, 121.0])
LIMITS = {
    "fetch_window_bytes": 64 * 1024,
    "max_requests": 10,
    "max_requests_per_client": 8,
    "max_bytes_per_client": 28,
    "max_attempts": 2,
    "max_unacknowledged_per_client": 5,
}


class BrokerMachine(RuleBasedStateMachine):
    """Honest and dishonest peers in any order; `Bench.settle` checks the books after each step."""

    def __init__(self):
        super().__init__()
        self.bench = None

    @rule(strategy=st.sampled_from(sorted(STRATEGIES)))
    def start(self, strategy):
        if self.bench is None:
            self.bench = Bench(strategy=strategy, **LIMITS)

    def live(self):
        if self.bench is None:
            self.bench = Bench(**LIMITS)
        return self.bench

    @rule(number=numbers, client=clients, timeout=st.sampled_from([None, 0.3, 5.0]), priority=st.integers(-1, 1))
    def submit(self, number, client, timeout, priority):
        self.live().submit(number, client, timeout_seconds=timeout, priority=priority, images=1 + number % 4)

    @rule(number=numbers, client=clients)
    def ack(self, number, client):
        self.live().ack(number, client=client)

    @rule(number=numbers, client=clients)
    def cancel(self, number, client):
        self.live().cancel(number, client)

    @rule(client=clients, leave=st.booleans())
    def client_lives(self, client, leave):
        self.live().client(client, Goodbye() if leave else ClientHeartbeat())

    @rule(worker=workers, queued=id_lists, finished=id_lists, seconds=st.sampled_from([None, 0.1, 2.0]))
    def ready(self, worker, queued, finished, seconds):
        self.live().ready(worker, queued=queued, finished=finished, seconds_per_image=seconds)

    @rule(worker=workers, running=id_lists, queued=id_lists, finished=id_lists, draining=st.booleans(), age=ages)
    def beat(self, worker, running, queued, finished, draining, age):
        holding = {"running": running, "queued": queued, "finished": finished}
        self.live().beat(worker, state="draining" if draining else "ready", step_age_seconds=age, **holding)

    @rule(worker=workers)
    def honest_beat(self, worker):
        known = self.live().core.workers.by_id.get(worker.encode())
        if known is not None:
            self.bench.beat(worker, running=list(known.assigned), finished=list(known.answers))

    @rule(worker=workers, number=numbers)
    def result(self, worker, number):
        self.live().result(worker, rid(number))

    @rule(worker=workers, number=numbers, code=st.sampled_from(["returned", "generation_failed"]))
    def error(self, worker, number, code):
        self.live().error(worker, rid(number), code)

    @rule(worker=workers)
    def goodbye(self, worker):
        self.live().worker(worker, Goodbye())

    @rule(worker=workers)
    def unreachable(self, worker):
        known = self.live().core.workers.by_id.get(worker.encode())
        lost = next(iter(known.assigned), None) if known is not None else None
        message = Drain() if lost is None else Work(request_id=lost)
        self.bench.handle(SendFailed(SendToWorker(worker.encode(), message)))

    @rule(client=clients, number=numbers)
    def client_takes_nothing(self, client, number):
        message = Accepted(request_ids=[rid(number)])
        self.live().handle(SendFailed(SendToClient(client.encode(), message, (), rid(number))))

    @rule(client=clients, number=numbers, sizes=st.sampled_from([[4], [4, 9000], [1, 0, 30_000]]))
    def submit_to_be_fetched(self, client, number, sizes):
        self.live().client(client, Submit(request_id=rid(number), frame_bytes=sizes))

    @rule(client=clients, number=numbers, right=st.booleans(), size=st.sampled_from([1, 4, 4096, 9004]))
    def client_chunk(self, client, number, right, size):
        request = self.live().core.table.requests.get(rid(number))
        offset = request.download.received if right and request is not None and request.download else size
        message = Chunk(request_id=rid(number), payload_id=rid(number), offset=offset)
        self.bench.client(client, message, [bytes(size)])

    @rule(worker=workers, number=numbers, payload=numbers, size=st.sampled_from([1, 5000, 70_000]))
    def result_to_be_fetched(self, worker, number, payload, size):
        image = ImageInfo(format="png", width=8, height=8, seed=1)
        fields = {"payload_id": rid(payload), "frame_bytes": [size], "images": [image]}
        self.live().worker(worker, Result(request_id=rid(number), worker=worker, model="m", **fields))

    @rule(client=clients, number=numbers, payload=numbers, right=st.booleans(), size=st.sampled_from([1, 70_000]))
    def client_fetch(self, client, number, payload, right, size):
        request = self.live().core.table.requests.get(rid(number))
        relay = None if request is None else request.relay
        payload_id, offset = (relay.payload_id, relay.end) if right and relay else (rid(payload), size)
        message = Fetch(request_id=rid(number), payload_id=payload_id, offset=offset, length=size)
        self.bench.client(client, message)

    @rule(worker=workers, number=numbers, right=st.booleans(), size=st.sampled_from([1, 4096]))
    def worker_chunk(self, worker, number, right, size):
        request = self.live().core.table.requests.get(rid(number))
        relay = None if request is None else request.relay
        payload_id, offset = (relay.payload_id, relay.position) if right and relay else (rid(number), size)
        self.bench.worker(
            worker, Chunk(request_id=rid(number), payload_id=payload_id, offset=offset), [bytes(size)]
        )

    @rule(seconds=st.sampled_from([0.1, 1.0, 2.5, 4.0]))
    def time_passes(self, seconds):
        self.live().advance(seconds)

    @invariant()
    def tables_are_bounded(self):
        if self.bench is None:
            return
        table = self.bench.core.table
        assert len(table.requests) <= 10
        assert sum(client.held_bytes for client in self.bench.core.clients.by_id.values()) == table.bytes
        assert len(table.recent_ids) <= table.settings.max_recent_ids
        for client in self.bench.core.clients.by_id.values():
            assert client.asked_bytes + client.window.size <= table.settings.fetch_window_bytes

    @invariant()
    def nothing_waits_while_there_is_room(self):
        if self.bench is None or self.bench.core.settings.strategy == "least-wait":
            return
        core = self.bench.core
        if self.bench.now >= core.dispatching_from:
            waiting = core.scheduler.queue.peek("m") is not None
            room = sum(worker.room for worker in core.workers.by_id.values())
            assert not (waiting and room)


TestBroker = BrokerMachine.TestCase
TestBroker.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)

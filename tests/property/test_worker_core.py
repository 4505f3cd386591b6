"""Any messages and any events of the engine in any order: no exception, the books agree, nothing is made twice."""

from types import SimpleNamespace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from imagegen_protocol import ProtocolError
from imagegen_protocol.messages import Chunk, Drain, Fetch, Goodbye
from imagegen_worker.core import events as ev
from tests.unit.worker.bench import MODEL, Bench, rid

numbers = st.integers(0, 6)
brokers = st.integers(0, 1)
id_lists = st.lists(numbers, max_size=4)
jobs = st.integers(0, 9)
"""Job numbers: of requests that wait, run, are over or never were."""


class WorkerMachine(RuleBasedStateMachine):
    """Two brokers and an engine, honest and not; `Bench.check` looks at the books after each step."""

    def __init__(self):
        super().__init__()
        self.bench = Bench(
            brokers=2, warm=False, drain=5.0, count=4, bytes=80_000, seconds=40.0, input_bytes=30_000
        )

    def alive(self):
        return self.bench.status is None

    @precondition(alive)
    @rule()
    def warm(self):
        if not self.bench.core.ready:
            self.bench.event(ev.EngineReady((MODEL,), "cpu", None))

    @precondition(alive)
    @rule(
        number=numbers,
        broker=brokers,
        timeout_seconds=st.sampled_from([None, 0.5, 5.0]),
        attempt=st.integers(1, 3),
        progress=st.booleans(),
        body=st.sampled_from([{}, {}, {}, {"width": 9}]),
        model=st.sampled_from([None, None, "m", "other"]),
        alone=st.sampled_from([False, False, True]),
        images=st.sampled_from([(), (), (b"image",), (bytes(range(250)) * 80,), (bytes(40_000), b"mask")]),
        fetched=st.booleans(),
        inline_bytes=st.sampled_from([0, 2000, 65_536]),
    )
    def work(self, number, broker, images, fetched, body, **fields):
        held = self.bench.core.held.get(rid(number))
        known = held is not None and held.download is None
        before = len(self.bench.all_jobs)
        body = {**body, "inputs": ["image", "mask_image"][: len(images)]} if images else body
        self.bench.work(number, *images, broker=broker, body=body, fetched=fetched, **fields)
        assert len(self.bench.all_jobs) <= before + 1
        assert not known or len(self.bench.all_jobs) == before, "what is held is not made again"

    @precondition(alive)
    @rule(count=st.integers(1, 20))
    def serve(self, count):
        """Brokers answer FETCHes."""
        self.bench.serve(count)

    @precondition(alive)
    @rule(count=st.integers(1, 4))
    def lose_fetches(self, count):
        for _ in range(min(count, len(self.bench.fetches))):
            self.bench.fetches.pop()

    @precondition(alive)
    @rule(
        number=numbers,
        payload=numbers,
        broker=brokers,
        offset=st.sampled_from([0, 1, 8192, 2**30]),
        frames=st.sampled_from([(), (b"x",), (bytes(262_144),), (b"x", b"y")]),
    )
    def false_chunk(self, number, payload, broker, offset, frames):
        """A chunk that was not asked for."""
        held = self.bench.core.held.get(rid(number))
        download = None if held is None else held.download
        if download is None or payload != number or offset != download.received:
            chunk = Chunk(request_id=rid(number), payload_id=rid(payload), offset=offset)
            self.bench.receive(chunk, *frames, broker=broker)

    @precondition(alive)
    @rule(
        number=numbers,
        broker=brokers,
        ours=st.booleans(),
        offset=st.sampled_from([0, 3, 19_999, 2**30]),
        length=st.sampled_from([1, 7000, 2**24]),
    )
    def fetch(self, number, broker, ours, offset, length):
        """A client fetches images, of an answer that exists or not: exactly the bytes that it asks for arrive."""
        held = self.bench.core.held.get(rid(number)) or SimpleNamespace(images=(), payload_id=b"", answer=None)
        payload_id = held.payload_id if ours and held.payload_id else b"x" * 16
        before = len(self.bench.sent)
        self.bench.receive(
            Fetch(request_id=rid(number), payload_id=payload_id, offset=offset, length=length, chunk_bytes=4096),
            broker=broker,
        )
        chunks = [frames[0] for to, sent, frames in self.bench.sent[before:] if isinstance(sent, Chunk)]
        wanted = b"".join(held.images)[offset : offset + length] if payload_id == held.payload_id else b""
        assert b"".join(chunks) == wanted
        assert all(0 < len(chunk) <= 4096 for chunk in chunks)

    @precondition(alive)
    @rule(ids=id_lists, broker=brokers)
    def release(self, ids, broker):
        self.bench.release(*ids, broker=broker)

    @precondition(alive)
    @rule(ids=id_lists, broker=brokers)
    def resend(self, ids, broker):
        self.bench.resend(*ids, broker=broker)

    @precondition(alive)
    @rule(
        broker=brokers,
        session=st.integers(0, 2),
        epoch=st.sampled_from([b"e" * 16, b"f" * 16]),
        interval=st.sampled_from([0.01, 0.5, 1.0]),
    )
    def beat(self, broker, session, epoch, interval):
        self.bench.beat(broker, session=session, epoch=epoch, interval_seconds=interval)

    @precondition(alive)
    @rule(broker=brokers, code=st.sampled_from(["worker_name_taken", "protocol_error", "later_code"]))
    def refuse(self, broker, code):
        self.bench.refuse(code, broker=broker)

    @precondition(alive)
    @rule(broker=brokers)
    def malformed(self, broker):
        self.bench.event(ev.Malformed(broker, ProtocolError("bad")))

    @precondition(alive)
    @rule(job=jobs)
    def decoded(self, job):
        self.bench.decoded_job(job)

    @precondition(alive)
    @rule(start=jobs, count=st.integers(1, 4))
    def started(self, start, count):
        waiting = self.bench.core._requests.gate._waiting  # of these the engine has never heard
        self.bench.event(ev.Started(tuple(job for job in range(start, start + count) if job not in waiting)))

    @precondition(alive)
    @rule(job=jobs, step=st.integers(1, 4))
    def stepped(self, job, step):
        self.bench.event(ev.Stepped((job, job + 1), step, 4))

    @precondition(alive)
    @rule(job=jobs, size=st.sampled_from([1, 3000, 20_000]))
    def finished(self, job, size):
        self.bench.finish_job(job, bytes(size))

    @precondition(alive)
    @rule(job=jobs, code=st.sampled_from(["generation_failed", "out_of_memory"]))
    def failed(self, job, code):
        self.bench.fail_job(job, code)

    @precondition(alive)
    @rule()
    def honest_engine(self):
        """The oldest job that the engine has begins, or ends."""
        for job in list(self.bench.jobs):
            held = self.bench.core.held.by_number(job)
            if held.id in self.bench.core.held.queued:
                self.bench.event(ev.Started((job,)))
            else:
                self.bench.finish_job(job)
                self.bench.event(ev.Idle())
            return

    @precondition(alive)
    @rule(event=st.sampled_from([ev.Idle(), ev.CallFailed(2, 0.1, split=True)]))
    def engine(self, event):
        self.bench.event(event)

    @precondition(alive)
    @rule(seconds=st.sampled_from([0.1, 1.0, 4.0, 70.0]))
    def time_passes(self, seconds):
        self.bench.advance(seconds)

    @precondition(alive)
    @rule(by_signal=st.booleans())
    def drain(self, by_signal):
        if by_signal:
            self.bench.event(ev.DrainRequested("SIGTERM"))
        else:
            self.bench.receive(Drain(), broker=1)
        assert not self.bench.core._requests._receiver._receiving, "what is not complete is returned"

    @precondition(lambda self: not self.alive())
    @rule(broker=brokers)
    def late(self, broker):
        """What still comes while the process ends."""
        self.bench.beat(broker)
        self.bench.event(ev.Idle())
        self.bench.advance(1.0)

    def teardown(self):
        bench = self.bench
        if bench.status is None:
            # However it stands, a drain ends once the engine has made what it has.
            bench.event(ev.DrainRequested("SIGTERM"))
            assert not bench.decoding, "what has not begun is given back"
            for job in list(bench.jobs):
                bench.finish_job(job)
            bench.event(ev.Idle())
            if bench.status is None:
                bench.advance(5.0)
        assert bench.status is not None
        assert bench.core.next_deadline() is None
        farewells = [broker for broker, message, _ in bench.sent if isinstance(message, Goodbye)]
        assert len(farewells) == len(set(farewells)), "each broker hears one GOODBYE at most"


TestWorker = WorkerMachine.TestCase
TestWorker.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)

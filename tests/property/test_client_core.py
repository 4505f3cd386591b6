"""Any messages in any order and at any time: each request ends at most once, and the core never loops."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imagegen_client.events import Received
from imagegen_protocol.messages import (
    Accepted,
    BrokerHeartbeat,
    Chunk,
    Fetch,
    ImageInfo,
    Progress,
    Result,
    Stats,
    Submit,
)
from tests.unit.client.core_harness import FIRST, SECOND, CoreHarness, rid

numbers = st.integers(0, 11)
seconds = st.sampled_from([0.0, 0.05, 0.9, 1.0, 2.0, 3.5, 20.0])
intervals = st.sampled_from([0.01, 0.1, 1.0, 5.0, 3600.0])
payload_ids = st.sampled_from([b"p" * 16, b"q" * 16])
sizes = st.sampled_from([1, 5000, 16_384, 300_000])
codes = st.sampled_from(
    ["generation_failed", "cancelled", "overloaded", "deadline_exceeded", "of_a_later_version"]
)


class ClientMachine(RuleBasedStateMachine):
    """`CoreHarness` fails if a request ends twice, on sending before connecting, or if the deadline is stuck."""

    def __init__(self):
        super().__init__()
        self.harness = CoreHarness()
        self.asked = set()
        self.closed = False

    @initialize(
        endpoints=st.sampled_from([(FIRST,), (FIRST, SECOND)]),
        connect_timeout=st.sampled_from([None, 2.0]),
        retry_overloaded=st.booleans(),
    )
    def open(self, **settings):
        self.harness = CoreHarness(*settings.pop("endpoints"), **settings)

    def wire_ids(self):
        """Return the ids that the broker has seen, retries included, and some that it has not."""
        seen = [message.request_id for message in self.harness.sent if isinstance(message, Submit)]
        return [*dict.fromkeys(seen), *(rid(number) for number in range(12))]

    # ---- the application -----------------------------------------------------------------------------------

    @rule(number=numbers, timeout=st.sampled_from([None, 0.5, 4.0, 100.0]))
    def submit(self, number, timeout):
        if not self.closed and rid(number) not in self.asked:
            self.asked.add(rid(number))
            large = number % 2
            self.harness.submit(number, (b"body", bytes(large * 20_000)), timeout_seconds=timeout)

    @rule(number=st.integers(100, 103), timeout=st.sampled_from([0.5, 10.0]))
    def stats(self, number, timeout):
        if not self.closed and rid(number) not in self.asked:
            self.asked.add(rid(number))
            self.harness.stats(number, timeout)

    @rule(number=numbers)
    def cancel(self, number):
        self.harness.cancel(number)

    @rule(really=st.integers(0, 9))
    def close(self, really):
        if really == 0:
            self.closed = True
            self.harness.close()

    # ---- the broker ----------------------------------------------------------------------------------------

    @rule(
        epoch=st.sampled_from([b"e" * 16, b"f" * 16]),
        session=st.integers(0, 2),
        interval=intervals,
        liveness=st.sampled_from([1, 3, 1000]),
    )
    def heartbeat(self, epoch, session, interval, liveness):
        message = BrokerHeartbeat(epoch=epoch, session=session, interval_seconds=interval, liveness=liveness)
        self.harness.receive(message)

    @rule(data=st.data())
    def accepted(self, data):
        self.harness.accepted(*data.draw(st.lists(st.sampled_from(self.wire_ids()), max_size=4)))

    @rule(data=st.data(), step=st.integers(0, 3), token=st.sampled_from([b"", b"t" * 16]))
    def progress(self, data, step, token):
        request_id = data.draw(st.sampled_from(self.wire_ids()))
        self.harness.receive(Progress(request_id=request_id, step=step, steps=2, token=token))

    @rule(data=st.data(), payload_id=payload_ids, size=sizes)
    def announced_result(self, data, payload_id, size):
        request_id = data.draw(st.sampled_from(self.wire_ids()))
        self.harness.announce(request_id, bytes(size), payload_id=payload_id)

    @rule(data=st.data(), payload_id=payload_ids, size=sizes)
    def announced_statistics(self, data, payload_id, size):
        request_id = data.draw(st.sampled_from([rid(number) for number in range(100, 104)]))
        self.harness.announce_stats(request_id, bytes(size), payload_id=payload_id)

    @rule(size=sizes, most=st.integers(1, 20))
    def fetches_are_answered(self, size, most):
        self.harness.answer_fetches(bytes(size), most=most)

    @rule(data=st.data(), payload_id=payload_ids, offset=st.integers(0, 300_000), size=sizes)
    def any_chunk(self, data, payload_id, offset, size):
        request_id = data.draw(st.sampled_from(self.wire_ids()))
        self.harness.receive(Chunk(request_id=request_id, payload_id=payload_id, offset=offset), bytes(size))

    @rule(data=st.data(), offset=st.integers(0, 30_000), length=st.integers(1, 10**6))
    def fetch(self, data, offset, length):
        request_id = data.draw(st.sampled_from(self.wire_ids()))
        before = len(self.harness.sent_chunks)
        self.harness.receive(Fetch(request_id=request_id, payload_id=request_id, offset=offset, length=length))
        sent = self.harness.sent_chunks[before:]
        assert sum(len(data) for _, data in sent) <= min(length, 20_004)

    @rule(data=st.data(), images=st.integers(0, 2), frames=st.integers(0, 2), again=st.integers(1, 2))
    def result(self, data, images, frames, again):
        request_id = data.draw(st.sampled_from(self.wire_ids()))
        for _ in range(again):
            self.harness.result(request_id, frames, images)

    @rule(data=st.data(), code=codes, after=st.sampled_from([None, 0.0, 0.01, 3.0, 1e300, math.inf]))
    def error(self, data, code, after):
        self.harness.error(data.draw(st.sampled_from([None, *self.wire_ids()])), code, after)

    @rule(data=st.data())
    def unreadable(self, data):
        self.harness.receive_invalid(data.draw(st.sampled_from([None, *self.wire_ids()])))

    @rule(really=st.integers(0, 5))
    def other_version(self, really):
        if really == 0:
            self.harness.error(None, "unsupported_version")

    @rule(number=st.integers(100, 104), frames=st.integers(0, 2))
    def statistics(self, number, frames):
        self.harness.receive(Stats(request_id=rid(number)), *[b"map"] * frames)

    @rule(code=st.sampled_from(["overloaded", "unauthorized"]), after=st.sampled_from([None, 0.0, 3.0, 1e300]))
    def refusal(self, code, after):
        self.harness.error(None, code, after)

    # ---- time ----------------------------------------------------------------------------------------------

    @rule(seconds=seconds)
    def time_passes(self, seconds):
        # At most a heartbeat each hundredth of a second, and a few resends.
        self.harness.advance(seconds, most_ticks=int(seconds * 200) + 50 + 4 * len(self.asked))

    @rule(seconds=seconds)
    def this_process_is_suspended(self, seconds):
        self.harness.now += seconds

    # ---- invariants ---------------------------------------------------------------------------------------

    @invariant()
    def every_request_is_pending_or_ended(self):
        core = self.harness.core
        assert self.asked == set(core._pending.by_key) | set(self.harness.outcomes)
        assert not set(core._pending.by_key) & set(self.harness.outcomes)

    @invariant()
    def the_tables_agree(self):
        pending = self.harness.core._pending
        assert {id(entry) for entry in pending.by_id.values()} == {id(entry) for entry in pending.by_key.values()}
        assert set(pending.timers._time) <= set(pending.by_key)
        assert self.harness.core._receipts.acks() == []

    @invariant()
    def transfers_belong_to_pending_entries_and_fit_the_window(self):
        core = self.harness.core
        downloads = core._payloads._downloads
        assert set(downloads._by_id) <= set(core._pending.by_id)
        assert 0 <= downloads.outstanding <= downloads._max_window
        for request_id, download in downloads._by_id.items():
            assert core._pending.by_id[request_id].download is download
        assert downloads.outstanding == sum(download.outstanding for download in downloads._by_id.values())

    @invariant()
    def every_entry_that_becomes_due_has_a_timer(self):
        pending = self.harness.core._pending
        for key, entry in pending.by_key.items():
            unaccepted = entry.sent_at is not None and not entry.accepted
            ends = entry.timeout != math.inf or entry.cancel_deadline is not None
            if unaccepted or ends or entry.retry_at is not None:
                assert key in pending.timers._time

    @invariant()
    def a_closed_client_is_empty_and_silent(self):
        if self.closed:
            core = self.harness.core
            assert core.unfinished == len(core._pending.by_id) == len(core._pending.timers) == 0
            assert core.next_deadline() is None
            assert core.handle(Received(Accepted(request_ids=[])), self.harness.now) == []

    def teardown(self):
        self.closed = True
        self.harness.close()
        self.every_request_is_pending_or_ended()
        self.a_closed_client_is_empty_and_silent()
        assert self.asked == set(self.harness.outcomes)


TestClient = ClientMachine.TestCase
TestClient.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class CorrectBrokerMachine(RuleBasedStateMachine):
    """A correct broker over an unreliable connection: every request ends with its result."""

    def __init__(self):
        super().__init__()
        self.harness = CoreHarness(FIRST, SECOND)
        self.count = 0

    @rule(number=st.integers(1, 3))
    def submit(self, number):
        for _ in range(number):
            self.count += 1
            self.harness.submit(self.count)

    @rule(seconds=seconds)
    def no_messages(self, seconds):
        self.harness.advance(seconds)

    @rule()
    def messages_are_lost(self):
        self.harness.take()

    @rule(epoch=st.sampled_from([b"e" * 16, b"f" * 16]), session=st.integers(1, 2))
    def a_broker_sends_a_heartbeat(self, epoch, session):
        self.harness.heartbeat(epoch, session)

    @rule()
    def a_broker_accepts_its_requests(self):
        # It may restart right afterwards: only a new epoch or session shows it.
        self.harness.accepted(*{message.request_id for message in self.harness.take(Submit)})

    def teardown(self):
        harness = self.harness
        if not self.count:
            return
        harness.heartbeat(b"last broker here", 7)
        for _ in range(4):
            for message in harness.take(Submit):
                info = [ImageInfo(format="png", width=1, height=1, seed=1)]
                result = Result(request_id=message.request_id, worker="w", model="m", images=info)
                harness.receive(result, b"image")
            harness.advance_with_heartbeats(1.0)
        assert len(harness.outcomes) == self.count
        assert harness.core.unfinished == 0


TestCorrectBroker = CorrectBrokerMachine.TestCase
TestCorrectBroker.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

"""Any words of any broker, in any order and at any time: each request ends once at most, and nothing spins."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from imagegen_client.events import Received
from imagegen_protocol.messages import Accepted, BrokerHeartbeat, ImageInfo, Progress, Result, Stats, Submit
from tests.unit.client.desk import FIRST, SECOND, Desk, rid

numbers = st.integers(0, 11)
seconds = st.sampled_from([0.0, 0.05, 0.9, 1.0, 2.0, 3.5, 20.0])
intervals = st.sampled_from([0.01, 0.1, 1.0, 5.0, 3600.0])
codes = st.sampled_from(
    ["generation_failed", "cancelled", "overloaded", "deadline_exceeded", "of_a_later_version"]
)


class ClientMachine(RuleBasedStateMachine):
    """`Desk` fails if an end comes twice, if anything is sent undialled, and if the deadline stands still."""

    def __init__(self):
        super().__init__()
        self.desk = Desk()
        self.asked = set()
        self.closed = False

    @initialize(
        endpoints=st.sampled_from([(FIRST,), (FIRST, SECOND)]),
        connect_timeout=st.sampled_from([None, 2.0]),
        retry_overloaded=st.booleans(),
    )
    def open(self, **settings):
        self.desk = Desk(*settings.pop("endpoints"), **settings)

    def wire_ids(self):
        """Ids that the broker has seen, retries included, and some that it made up."""
        seen = [message.request_id for message in self.desk.sent if isinstance(message, Submit)]
        return [*dict.fromkeys(seen), *(rid(number) for number in range(12))]

    # ---- the application -----------------------------------------------------------------------------------

    @rule(number=numbers, timeout=st.sampled_from([None, 0.5, 4.0, 100.0]))
    def submit(self, number, timeout):
        if not self.closed and rid(number) not in self.asked:
            self.asked.add(rid(number))
            self.desk.submit(number, timeout_seconds=timeout)

    @rule(number=st.integers(100, 103), timeout=st.sampled_from([0.5, 10.0]))
    def stats(self, number, timeout):
        if not self.closed and rid(number) not in self.asked:
            self.asked.add(rid(number))
            self.desk.stats(number, timeout)

    @rule(number=numbers)
    def cancel(self, number):
        self.desk.cancel(number)

    @rule(really=st.integers(0, 9))
    def close(self, really):
        if really == 0:
            self.closed = True
            self.desk.close()

    # ---- the broker ----------------------------------------------------------------------------------------

    @rule(
        epoch=st.sampled_from([b"e" * 16, b"f" * 16]),
        session=st.integers(0, 2),
        interval=intervals,
        liveness=st.sampled_from([1, 3, 1000]),
    )
    def heartbeat(self, epoch, session, interval, liveness):
        words = BrokerHeartbeat(epoch=epoch, session=session, interval_seconds=interval, liveness=liveness)
        self.desk.hear(words)

    @rule(data=st.data())
    def accepted(self, data):
        self.desk.accepted(*data.draw(st.lists(st.sampled_from(self.wire_ids()), max_size=4)))

    @rule(data=st.data(), step=st.integers(0, 3))
    def progress(self, data, step):
        request_id = data.draw(st.sampled_from(self.wire_ids()))
        self.desk.hear(Progress(request_id=request_id, step=step, steps=2))

    @rule(data=st.data(), images=st.integers(0, 2), frames=st.integers(0, 2), again=st.integers(1, 2))
    def result(self, data, images, frames, again):
        request_id = data.draw(st.sampled_from(self.wire_ids()))
        for _ in range(again):
            self.desk.result(request_id, frames, images)

    @rule(data=st.data(), code=codes, after=st.sampled_from([None, 0.0, 0.01, 3.0, 1e300, math.inf]))
    def error(self, data, code, after):
        self.desk.error(data.draw(st.sampled_from([None, *self.wire_ids()])), code, after)

    @rule(data=st.data())
    def unreadable(self, data):
        self.desk.unreadable(data.draw(st.sampled_from([None, *self.wire_ids()])))

    @rule(really=st.integers(0, 5))
    def other_version(self, really):
        if really == 0:
            self.desk.error(None, "unsupported_version")

    @rule(frames=st.integers(0, 2))
    def statistics(self, frames):
        self.desk.hear(Stats(), *[b"map"] * frames)

    # ---- time ----------------------------------------------------------------------------------------------

    @rule(seconds=seconds)
    def time_passes(self, seconds):
        # A heartbeat each hundredth of a second is the most that a broker can make it do, and a few resends.
        self.desk.advance(seconds, most_ticks=int(seconds * 200) + 50 + 4 * len(self.asked))

    @rule(seconds=seconds)
    def this_process_sleeps(self, seconds):
        self.desk.now += seconds

    # ---- what holds ----------------------------------------------------------------------------------------

    @invariant()
    def every_request_is_pending_or_ended(self):
        core = self.desk.core
        assert self.asked == set(core._pending) | set(self.desk.ends)
        assert not set(core._pending) & set(self.desk.ends)

    @invariant()
    def the_tables_agree(self):
        core = self.desk.core
        assert {id(entry) for entry in core._by_id.values()} == {id(entry) for entry in core._pending.values()}
        assert set(core._timers._time) <= set(core._pending)
        assert core._acks == []

    @invariant()
    def what_waits_for_acceptance_or_an_end_has_a_timer(self):
        core = self.desk.core
        for key, entry in core._pending.items():
            waits = entry.sent_at is not None and not entry.accepted
            if waits or entry.timeout != math.inf or entry.cancel_by is not None or entry.retry_at is not None:
                assert key in core._timers._time

    @invariant()
    def a_closed_client_is_empty_and_silent(self):
        if self.closed:
            core = self.desk.core
            assert core.unfinished == len(core._by_id) == len(core._timers) == 0
            assert core.next_deadline() is None
            assert core.handle(Received(Accepted(request_ids=[])), self.desk.now) == []

    def teardown(self):
        self.closed = True
        self.desk.close()
        self.every_request_is_pending_or_ended()
        self.a_closed_client_is_empty_and_silent()
        assert self.asked == set(self.desk.ends)


TestClient = ClientMachine.TestCase
TestClient.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


class HonestMachine(RuleBasedStateMachine):
    """A broker that keeps its word, over a bad line: whatever was asked ends, and well where it can."""

    def __init__(self):
        super().__init__()
        self.desk = Desk(FIRST, SECOND)
        self.count = 0

    @rule(number=st.integers(1, 3))
    def submit(self, number):
        for _ in range(number):
            self.count += 1
            self.desk.submit(self.count)

    @rule(seconds=seconds)
    def silence(self, seconds):
        self.desk.advance(seconds)

    @rule()
    def messages_are_lost(self):
        self.desk.take()

    @rule(epoch=st.sampled_from([b"e" * 16, b"f" * 16]), session=st.integers(1, 2))
    def a_broker_speaks(self, epoch, session):
        self.desk.heartbeat(epoch, session)

    @rule()
    def a_broker_accepts_what_it_has(self):
        # One that dies right after: only another epoch or session tells.
        self.desk.accepted(*{message.request_id for message in self.desk.take(Submit)})

    def teardown(self):
        desk = self.desk
        if not self.count:
            return
        desk.heartbeat(b"last broker here", 7)
        for _ in range(4):
            for message in desk.take(Submit):
                info = [ImageInfo(format="png", width=1, height=1, seed=1)]
                desk.hear(Result(request_id=message.request_id, worker="w", model="m", images=info), b"image")
            desk.alive(1.0)
        assert len(desk.ends) == self.count
        assert desk.core.unfinished == 0


TestHonest = HonestMachine.TestCase
TestHonest.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

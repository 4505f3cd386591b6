"""Timers, the link, endpoints."""

import random

import pytest

from imagegen_client.link import Link
from imagegen_client.timers import Timers
from imagegen_protocol.messages import BrokerHeartbeat

# ---- timers ------------------------------------------------------------------------------------------------


def test_timers_come_in_order_and_once():
    timers = Timers()
    for key, time in ((b"c", 3.0), (b"a", 1.0), (b"b", 2.0)):
        timers.set(key, time)
    assert timers.first() == 1.0
    assert timers.pop_due(0.5) == []
    assert timers.pop_due(2.0) == [b"a", b"b"]
    assert timers.pop_due(9.0) == [b"c"]
    assert timers.first() is None
    assert len(timers) == 0


def test_a_timer_set_again_counts_at_its_new_time_only():
    timers = Timers()
    timers.set(b"a", 1.0)
    timers.set(b"a", 5.0)
    assert timers.pop_due(4.0) == []
    timers.set(b"a", 2.0)
    assert timers.pop_due(4.0) == [b"a"]
    assert timers.pop_due(9.0) == []


def test_none_removes_a_timer():
    timers = Timers()
    timers.set(b"a", 1.0)
    timers.set(b"a", None)
    timers.set(b"b", None)
    assert timers.first() is None
    timers.set(b"a", 1.0)
    assert timers.pop_due(1.0) == [b"a"]


def test_timers_agree_with_a_plain_table():
    random_ = random.Random(1)
    timers, table = Timers(), {}
    for now in range(2000):
        key, time = bytes([random_.randrange(50)]), random_.choice([None, now + random_.random() * 20])
        timers.set(key, time)
        table.pop(key, None)
        if time is not None:
            table[key] = time
        assert timers.first() == (min(table.values()) if table else None)
        due = timers.pop_due(now)
        assert due == [key for key, at in sorted(table.items(), key=lambda item: item[1]) if at <= now]
        for key in due:
            del table[key]


def test_replaced_times_do_not_pile_up():
    timers = Timers()
    for number in range(10_000):
        timers.set(b"a", 1e9 - number % 1000)
    assert timers.heap_size <= 2 * len(timers) + 64


# ---- the link ----------------------------------------------------------------------------------------------


def heartbeat(epoch=b"e" * 16, session=1, interval=1.0, liveness=3):
    return BrokerHeartbeat(epoch=epoch, session=session, interval_seconds=interval, liveness=liveness)


def test_endpoints_take_turns():
    link = Link(("a", "b"))
    assert link.endpoint == "a"
    said = []
    for now in range(4):
        link.dial(now)
        said.append(link.endpoint)
    assert said == ["a", "b", "a", "b"]


def test_no_endpoint_is_no_link():
    with pytest.raises(ValueError, match="at least one"):
        Link(())


def test_the_first_word_and_the_first_after_a_silence_are_noted():
    link = Link(("a",))
    link.dial(0.0)
    assert link.heard(1.0)
    assert not link.heard(3.9)
    assert link.heard(6.9)


def test_only_a_change_of_standing_is_one():
    link = Link(("a",))
    link.dial(0.0)
    assert not link.announced(heartbeat(), 0.0)
    assert not link.announced(heartbeat(), 1.0)
    assert link.announced(heartbeat(session=2), 2.0)
    assert link.announced(heartbeat(epoch=b"f" * 16, session=2), 3.0)
    link.dial(4.0)
    assert not link.announced(heartbeat(session=9), 5.0), "another connection: the first word sends everything"


def test_silence_is_liveness_intervals():
    link = Link(("a",))
    link.dial(0.0)
    link.heard(10.0)
    link.announced(heartbeat(interval=0.5, liveness=4), 10.0)
    assert link.silence == 2.0
    assert link.dead_at == 12.0
    assert link.next_heartbeat <= 10.5

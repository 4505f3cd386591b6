"""Timers and the state of the connection."""

import random

import pytest

from imagegen_client.link import Link
from imagegen_client.timers import Timers
from imagegen_protocol.messages import BrokerHeartbeat

# ---- timers ------------------------------------------------------------------------------------------------


def test_due_timers_are_popped_once_and_in_order():
    timers = Timers()
    for key, time in ((b"c", 3.0), (b"a", 1.0), (b"b", 2.0)):
        timers.set(key, time)
    assert timers.first() == 1.0
    assert timers.pop_due(0.5) == []
    assert timers.pop_due(2.0) == [b"a", b"b"]
    assert timers.pop_due(9.0) == [b"c"]
    assert timers.first() is None
    assert len(timers) == 0


def test_setting_a_timer_again_replaces_its_time():
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


def test_timers_match_a_reference_dictionary():
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


def test_replaced_times_do_not_accumulate():
    timers = Timers()
    for number in range(10_000):
        timers.set(b"a", 1e9 - number % 1000)
    assert timers.heap_size <= 2 * len(timers) + 64


# ---- the link ----------------------------------------------------------------------------------------------


def heartbeat(epoch=b"e" * 16, session=1, interval=1.0, liveness=3):
    return BrokerHeartbeat(epoch=epoch, session=session, interval_seconds=interval, liveness=liveness)


def test_endpoints_are_used_in_turn():
    link = Link(("a", "b"))
    assert link.endpoint == "a"
    used = []
    for now in range(4):
        link.connect_next(now)
        used.append(link.endpoint)
    assert used == ["a", "b", "a", "b"]


def test_a_link_needs_an_endpoint():
    with pytest.raises(ValueError, match="at least one"):
        Link(())


def test_the_first_message_and_the_first_after_the_liveness_timeout_are_reported():
    link = Link(("a",))
    link.connect_next(0.0)
    assert link.record_message(1.0)
    assert not link.record_message(3.9)
    assert link.record_message(6.9)


def test_a_changed_epoch_or_session_is_reported():
    link = Link(("a",))
    link.connect_next(0.0)
    assert not link.apply_heartbeat(heartbeat(), 0.0)
    assert not link.apply_heartbeat(heartbeat(), 1.0)
    assert link.apply_heartbeat(heartbeat(session=2), 2.0)
    assert link.apply_heartbeat(heartbeat(epoch=b"f" * 16, session=2), 3.0)
    link.connect_next(4.0)
    assert not link.apply_heartbeat(heartbeat(session=9), 5.0), "its first message sends everything"


def test_the_liveness_timeout_is_liveness_times_the_interval():
    link = Link(("a",))
    link.connect_next(0.0)
    link.record_message(10.0)
    link.apply_heartbeat(heartbeat(interval=0.5, liveness=4), 10.0)
    assert link.liveness_timeout == 2.0
    assert link.dead_at == 12.0
    assert link.next_heartbeat <= 10.5

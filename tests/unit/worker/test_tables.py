"""The table of what is held, and what is known of a broker."""

import pytest

from imagegen_protocol.limits import MAX_IDS_PER_MESSAGE
from imagegen_protocol.messages import BrokerHeartbeat, Error
from imagegen_worker.core.broker_session import BrokerSession
from imagegen_worker.core.held_requests import ANSWER_OVERHEAD_BYTES, HeldLimits, HeldRequest, HeldRequests
from tests.unit.worker.bench import EPOCH, rid

ANSWER = Error(code="x", message="m")


def held(number):
    return HeldRequest(
        id=rid(number), number=number, broker=0, attempt=1, progress=False, arrived=0.0, deadline=None
    )


def test_a_request_is_found_by_id_and_number_until_it_is_answered():
    table = HeldRequests(HeldLimits())
    one = held(1)
    table.add(one)
    table.start(one)
    assert table.get(rid(1)) is one
    assert table.by_number(1) is one
    table.finish(one, ANSWER, (b"12345",), now=5.0)
    assert table.get(rid(1)) is one
    assert table.by_number(1) is None
    assert table.finished_bytes == one.size == ANSWER_OVERHEAD_BYTES + 5
    table.remove(one)
    table.remove(one)
    assert table.get(rid(1)) is None
    assert table.finished_bytes == 0


def test_starting_twice_is_harmless():
    table = HeldRequests(HeldLimits())
    one = held(1)
    table.add(one)
    table.start(one)
    table.start(one)
    assert list(table.unfinished()) == [one]


def test_no_more_answers_are_kept_than_a_heartbeat_can_list():
    table = HeldRequests(HeldLimits(count=5000))
    dropped = []
    for number in range(MAX_IDS_PER_MESSAGE + 2):
        one = held(number)
        table.add(one)
        dropped += table.finish(one, ANSWER, (), now=float(number))
    assert [one.number for one in dropped] == [0, 1]


def test_answers_expire_at_their_time_and_not_before():
    table = HeldRequests(HeldLimits(seconds=10.0))
    for number in (1, 2):
        one = held(number)
        table.add(one)
        table.finish(one, ANSWER, (), now=float(number))
    assert table.next_expiry() == 11.0
    assert table.expire(10.9) == []
    assert [one.number for one in table.expire(11.0)] == [1]
    assert [one.number for one in table.expire(100.0)] == [2]
    assert table.next_expiry() is None


@pytest.fixture
def session():
    return BrokerSession(0, unregistered_since=0.0, report_at=0.0)


def beat(**fields):
    return BrokerHeartbeat(
        **{"epoch": EPOCH, "session": 3, "beat": 7, "interval_seconds": 0.5, "liveness": 4, **fields}
    )


def test_an_announcement_is_taken_over(session):
    session.report_at, session.received_at = 100.0, 10.0
    session.update(beat(), now=10.0)
    assert (session.beat, session.interval, session.liveness) == (7, 0.5, 4)
    assert session.report_at == 10.5, "a shorter interval counts at once"
    assert session.dead_at == 12.0


def test_registration_is_by_session_and_epoch(session):
    assert not session.registered
    session.ready_sent, session.unanswered, session.logged_error = True, 2, "no"
    session.register(beat())
    assert session.registered
    assert (session.ready_sent, session.unanswered, session.logged_error) == (False, 0, "")
    assert session.matches(beat(beat=99))
    assert not session.matches(beat(session=4))
    assert not session.matches(beat(epoch=b"x" * 16))


def test_the_time_without_registration_counts_from_its_loss(session):
    session.register(beat())
    session.unregister(50.0)
    session.unregister(60.0)
    assert session.unregistered_since == 50.0
    assert session.report_at == 60.0

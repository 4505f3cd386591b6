"""The table of held requests, and the session with a broker."""

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
    request = held(1)
    table.add(request)
    table.start(request)
    assert table.get(rid(1)) is request
    assert table.by_number(1) is request
    table.finish(request, ANSWER, (b"12345",), now=5.0)
    assert table.get(rid(1)) is request
    assert table.by_number(1) is None
    assert table.finished_bytes == request.size == ANSWER_OVERHEAD_BYTES + 5
    table.remove(request)
    table.remove(request)
    assert table.get(rid(1)) is None
    assert table.finished_bytes == 0


def test_starting_a_request_twice_has_no_effect():
    table = HeldRequests(HeldLimits())
    request = held(1)
    table.add(request)
    table.start(request)
    table.start(request)
    assert list(table.unfinished()) == [request]


def test_the_number_of_answers_is_limited_to_the_ids_of_a_heartbeat():
    table = HeldRequests(HeldLimits(count=5000))
    dropped = []
    for number in range(MAX_IDS_PER_MESSAGE + 2):
        request = held(number)
        table.add(request)
        dropped += table.finish(request, ANSWER, (), now=float(number))
    assert [request.number for request in dropped] == [0, 1]


def test_answers_expire_after_the_configured_time():
    table = HeldRequests(HeldLimits(seconds=10.0))
    for number in (1, 2):
        request = held(number)
        table.add(request)
        table.finish(request, ANSWER, (), now=float(number))
    assert table.next_expiry() == 11.0
    assert table.expire(10.9) == []
    assert [request.number for request in table.expire(11.0)] == [1]
    assert [request.number for request in table.expire(100.0)] == [2]
    assert table.next_expiry() is None


@pytest.fixture
def session():
    return BrokerSession(0, unregistered_since=0.0, report_at=0.0)


def beat(**fields):
    return BrokerHeartbeat(
        **{"epoch": EPOCH, "session": 3, "beat": 7, "interval_seconds": 0.5, "liveness": 4, **fields}
    )


def test_announced_heartbeat_settings_are_applied(session):
    session.report_at, session.received_at = 100.0, 10.0
    session.update(beat(), now=10.0)
    assert (session.beat, session.interval, session.liveness) == (7, 0.5, 4)
    assert session.report_at == 10.5, "a shorter interval applies at once"
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


def test_the_unregistered_time_counts_from_the_first_loss(session):
    session.register(beat())
    session.unregister(50.0)
    session.unregister(60.0)
    assert session.unregistered_since == 50.0
    assert session.report_at == 60.0

"""The client's core: answers, refusals, cancelling, statistics, closing."""

import math

import pytest

from imagegen_client.events import Answer, Received, StatsAsked
from imagegen_protocol import (
    BrokerUnreachableError,
    CancelledError,
    ClientClosedError,
    OverloadedError,
    ProtocolError,
    RequestError,
    UnauthorizedError,
    UnsupportedVersionError,
)
from imagegen_protocol.messages import (
    Ack,
    Cancel,
    Goodbye,
    Result,
    Stats,
    StatsQuery,
    Submit,
)
from tests.unit.client.desk import BODY, FIRST, SECOND, Desk, connected, rid

# ---- answers -----------------------------------------------------------------------------------------------


def test_an_answer_is_acknowledged_and_comes_once(desk):
    desk.submit(1)
    desk.take()
    desk.result(rid(1))
    desk.result(rid(1))
    assert [message.request_ids for message in desk.take(Ack)] == [[rid(1)], [rid(1)]]
    assert desk.ends[rid(1)].payload == (b"image",)


def test_answers_of_strangers_are_acknowledged(desk):
    desk.result(rid(7))
    desk.error(rid(8))
    assert [message.request_ids for message in desk.take(Ack)] == [[rid(7)], [rid(8)]]


def test_acknowledgements_are_joined_and_split():
    desk = connected()
    core = desk.core
    for number in range(1500):
        info = {"worker": "w", "model": "m", "images": []}
        core.handle(Received(_result(rid(1000 + number), **info)), desk.now)
        core.handle(Received(_result(rid(1000 + number), **info)), desk.now)
    lists = [action.message.request_ids for action in core.settle()]
    assert [len(ids) for ids in lists] == [1024, 476]
    assert core.settle() == []


def _result(request_id, **fields):
    return Result(request_id=request_id, **fields)


@pytest.mark.parametrize(("frames", "images"), [(0, 0), (0, 1), (2, 1), (1, 2)])
def test_a_result_that_does_not_add_up_is_a_protocol_error(desk, frames, images):
    desk.submit(1)
    desk.take()
    desk.result(rid(1), frames, images)
    assert isinstance(desk.ends[rid(1)], ProtocolError)
    assert desk.take(Ack), "otherwise it would come for ever"


def test_an_error_is_the_typed_exception(desk):
    desk.submit(1)
    desk.error(rid(1), "of_a_later_version")
    assert isinstance(desk.ends[rid(1)], RequestError)
    assert "of_a_later_version" in str(desk.ends[rid(1)])


def test_an_answer_that_cannot_be_read_ends_its_request(desk):
    desk.submit(1)
    desk.take()
    desk.unreadable(rid(1))
    assert isinstance(desk.ends[rid(1)], ProtocolError)
    assert [message.request_ids for message in desk.take()] == [[rid(1)]]
    desk.unreadable(rid(44))
    assert [message.request_ids for message in desk.take()] == [[rid(44)]]


def test_trouble_that_names_no_request_is_told_to_a_person(desk):
    desk.error(None, "protocol_error")
    desk.unreadable(None)
    assert len(desk.warnings) == 2
    assert FIRST in desk.warnings[0]
    assert not desk.ends


@pytest.mark.parametrize(
    ("code", "error"), [("unsupported_version", UnsupportedVersionError), ("unauthorized", UnauthorizedError)]
)
def test_a_broker_that_will_not_talk_ends_everything(desk, code, error):
    desk.submit(1)
    desk.error(None, code)
    assert {type(end) for end in desk.ends.values()} == {error}
    assert desk.core.unfinished == 0


# ---- overloaded --------------------------------------------------------------------------------------------


def test_overloaded_is_an_error_unless_asked_otherwise(desk):
    desk.submit(1)
    desk.error(rid(1), "overloaded", 2.0)
    assert isinstance(desk.ends[rid(1)], OverloadedError)
    assert desk.ends[rid(1)].retry_after_seconds == 2.0


def test_overloaded_is_tried_again_under_another_id():
    desk = connected(retry_overloaded=True)
    desk.submit(1, priority=5)
    (first,) = desk.take()
    desk.error(rid(1), "overloaded", 2.0)
    assert [message.request_ids for message in desk.take()] == [[rid(1)]]
    desk.alive(1.9)
    assert desk.take() == [], "not before the time told"
    desk.alive(2.2)
    (again,) = [message for message in desk.take() if message.request_id != rid(99)][:1]
    assert again.request_id != first.request_id
    assert again.priority == 5
    assert desk.payloads[again.request_id] == (BODY,)
    desk.result(again.request_id)
    assert isinstance(desk.ends[rid(1)], Answer)


def test_retries_differ_from_each_other_and_spread():
    desk = connected(retry_overloaded=True)
    for number in range(1000, 1200):
        desk.submit(number)
        desk.error(rid(number), "overloaded", 10.0)
    desk.take()
    times = []
    for _ in range(40):
        desk.alive(0.5)
        new = {message.request_id for message in desk.take(Submit)} - {rid(99)}
        for request_id in new:
            desk.accepted(request_id)
        times += [desk.now] * len(new)
    assert len(times) == 200
    early, late = sum(time < 115 for time in times), sum(time >= 115 for time in times)
    assert early > 60
    assert late > 60


def test_each_retry_has_an_id_of_its_own():
    desk = connected(retry_overloaded=True)
    request_id = desk.submit(1)
    seen = {request_id}
    for _ in range(5):
        desk.error(request_id, "overloaded", 1.0)
        desk.take()
        desk.alive(2.1)
        (request_id,) = {message.request_id for message in desk.take(Submit)}
        assert request_id not in seen
        seen.add(request_id)


def test_the_old_id_of_a_retry_is_a_strangers():
    desk = connected(retry_overloaded=True)
    desk.submit(1)
    desk.error(rid(1), "overloaded", 5.0)
    desk.result(rid(1))
    assert rid(1) not in desk.ends


def test_a_waiting_retry_is_not_sent_by_a_restart():
    desk = connected(retry_overloaded=True)
    desk.submit(1)
    desk.error(rid(1), "overloaded", 50.0)
    desk.take()
    desk.heartbeat(session=2)
    assert [message.request_id for message in desk.take()] == [rid(99)]


@pytest.mark.parametrize("after", [20.0, math.inf])
def test_a_retry_that_would_come_too_late_is_the_error_now(after):
    desk = connected(retry_overloaded=True)
    desk.submit(1, timeout_seconds=10.0)
    desk.error(rid(1), "overloaded", after)
    assert isinstance(desk.ends[rid(1)], OverloadedError)


# ---- cancelling --------------------------------------------------------------------------------------------


def test_a_cancel_travels_and_the_brokers_word_ends_it(desk):
    desk.submit(1)
    desk.accepted(rid(1))
    desk.take()
    desk.cancel(1)
    assert desk.take() == [Cancel(request_id=rid(1))]
    assert rid(1) not in desk.ends
    desk.error(rid(1), "cancelled")
    assert isinstance(desk.ends[rid(1)], CancelledError)


def test_the_result_may_be_quicker_than_the_cancel(desk):
    desk.submit(1)
    desk.cancel(1)
    desk.result(rid(1))
    assert isinstance(desk.ends[rid(1)], Answer)
    desk.error(rid(1), "cancelled")
    assert isinstance(desk.ends[rid(1)], Answer)


def test_a_cancel_is_sent_again_until_it_is_answered_or_given_up(desk):
    desk.submit(1)
    desk.take()
    desk.cancel(1)
    desk.accepted(rid(1))  # on its way when the cancel went out: no answer to it
    desk.alive(2.5)
    assert desk.take() == [Cancel(request_id=rid(1))] * 2
    desk.alive(1.0)
    assert isinstance(desk.ends[rid(1)], CancelledError)
    assert "not confirmed" in desk.ends[rid(1)].message


def test_cancelled_before_it_was_sent_it_never_is():
    desk = Desk()
    key = desk.submit(1)
    desk.cancel(1)
    assert isinstance(desk.ends[key], CancelledError)
    desk.heartbeat()
    assert desk.take() == []


def test_a_cancel_during_a_broker_change_goes_to_the_next():
    desk = connected(FIRST, SECOND)
    desk.advance(3.1)
    desk.cancel(99)
    assert desk.take() == []
    desk.heartbeat()
    assert desk.take() == [Cancel(request_id=rid(99))]


def test_a_waiting_retry_is_cancelled_here():
    desk = connected(retry_overloaded=True)
    desk.submit(1)
    desk.error(rid(1), "overloaded", 5.0)
    desk.take()
    desk.cancel(1)
    assert isinstance(desk.ends[rid(1)], CancelledError)
    desk.alive(20)
    assert [message for message in desk.take(Submit) if message.request_id != rid(99)] == []


def test_overloaded_after_a_cancel_is_not_tried_again():
    desk = connected(retry_overloaded=True)
    desk.submit(1)
    desk.cancel(1)
    desk.error(rid(1), "overloaded", 1.0)
    assert isinstance(desk.ends[rid(1)], OverloadedError)


def test_cancelling_twice_or_nothing_is_nothing(desk):
    desk.submit(1)
    desk.cancel(1)
    desk.take()
    desk.cancel(1)
    desk.cancel(77)
    assert desk.take() == []


# ---- statistics --------------------------------------------------------------------------------------------


def test_one_answer_serves_every_question(desk):
    desk.stats(1)
    desk.stats(2)
    assert desk.take() == [StatsQuery(), StatsQuery()]
    desk.hear(Stats(), b"map")
    assert {desk.ends[rid(1)].payload, desk.ends[rid(2)].payload} == {(b"map",)}
    assert rid(99) not in desk.ends


def test_a_question_is_asked_again_and_ends_in_time(desk):
    desk.stats(1, timeout=5.0)
    desk.alive(2.1)
    assert desk.take() == [StatsQuery()] * 2
    desk.alive(3.0)
    assert isinstance(desk.ends[rid(1)], BrokerUnreachableError)


def test_statistics_without_their_frame_are_a_protocol_error(desk):
    desk.stats(1)
    desk.hear(Stats())
    assert isinstance(desk.ends[rid(1)], ProtocolError)


# ---- the end -----------------------------------------------------------------------------------------------


def test_closing_ends_everything_and_takes_leave(desk):
    desk.submit(1)
    desk.stats(2)
    desk.take()
    desk.core.handle(Received(_result(rid(1), worker="w", model="m", images=[])), desk.now)
    desk.close()
    assert [type(message) for message in desk.take()] == [Ack, Goodbye], "acknowledged first"
    assert isinstance(desk.ends[rid(99)], ClientClosedError)
    assert isinstance(desk.ends[rid(2)], ClientClosedError)
    assert desk.core.unfinished == 0
    assert desk.core.next_deadline() is None
    desk.close()
    desk.heartbeat()
    desk.advance(100)
    assert desk.sent == []


def test_without_a_broker_there_is_nobody_to_take_leave_of():
    desk = Desk()
    desk.submit(1)
    desk.close()
    assert desk.take() == []


def test_a_closed_core_takes_nothing_on(desk):
    desk.close()
    with pytest.raises(ClientClosedError):
        desk.submit(1)
    with pytest.raises(ClientClosedError):
        desk.core.handle(StatsAsked(rid(1), 1.0), desk.now)


def test_an_id_is_used_once_at_a_time(desk):
    with pytest.raises(ValueError, match="in use"):
        desk.submit(99)

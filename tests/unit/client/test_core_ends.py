"""Client core: answers, errors, retries, cancelling, statistics, closing."""

import math

import pytest

from imagegen_client.events import Answer, Received, StatsRequested, Tick
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
    ImageInfo,
    Result,
    Stats,
    StatsQuery,
    Submit,
)
from tests.unit.client.core_harness import BODY, FIRST, SECOND, CoreHarness, connected, rid

# ---- answers -----------------------------------------------------------------------------------------------


def test_an_answer_is_acknowledged_and_delivered_once(harness):
    harness.submit(1)
    harness.take()
    harness.result(rid(1))
    harness.result(rid(1))
    assert [message.request_ids for message in harness.take(Ack)] == [[rid(1)], [rid(1)]]
    assert harness.outcomes[rid(1)].payload == (b"image",)


def test_answers_to_unknown_requests_are_acknowledged(harness):
    harness.result(rid(7))
    harness.error(rid(8))
    assert [message.request_ids for message in harness.take(Ack)] == [[rid(7)], [rid(8)]]


def test_acknowledgements_are_collected_and_split_by_size():
    harness = connected()
    core = harness.core
    for number in range(1500):
        info = {"worker": "w", "model": "m", "images": []}
        core.handle(Received(_result(rid(1000 + number), **info)), harness.now)
        core.handle(Received(_result(rid(1000 + number), **info)), harness.now)
    lists = [action.message.request_ids for action in core.handle(Tick(), harness.now)]
    assert [len(ids) for ids in lists] == [1024, 476]
    assert core.handle(Tick(), harness.now) == []


def _result(request_id, **fields):
    return Result(request_id=request_id, **fields)


@pytest.mark.parametrize(("frames", "images"), [(0, 0), (0, 1), (2, 1), (1, 2), (3, 3)])
def test_a_result_with_the_wrong_number_of_frames_is_a_protocol_error(harness, frames, images):
    harness.submit(1, images=2)
    harness.take()
    harness.result(rid(1), frames, images)
    assert isinstance(harness.outcomes[rid(1)], ProtocolError)
    assert harness.take(Ack), "otherwise the broker would repeat it for ever"


def test_a_worker_may_send_fewer_images_than_requested(harness):
    harness.submit(1, images=3)
    harness.result(rid(1), frames=2, images=2)
    assert len(harness.outcomes[rid(1)].payload) == 2


@pytest.mark.parametrize("kind", ["eps", "html", "/../x", "PNG", ""])
def test_a_result_in_an_unknown_format_is_a_protocol_error(harness, kind):
    harness.submit(1)
    harness.take()
    image = ImageInfo(format=kind, width=1, height=1, seed=1)
    harness.receive(_result(rid(1), worker="w", model="m", images=[image]), b"bytes")
    assert "expected images in the format png or jpeg or webp" in harness.outcomes[rid(1)].message
    assert harness.take(Ack)


def test_an_unknown_error_code_is_a_request_error(harness):
    harness.submit(1)
    harness.error(rid(1), "of_a_later_version")
    assert isinstance(harness.outcomes[rid(1)], RequestError)
    assert "of_a_later_version" in str(harness.outcomes[rid(1)])


def test_an_undecodable_answer_ends_its_request(harness):
    harness.submit(1)
    harness.take()
    harness.receive_invalid(rid(1))
    assert isinstance(harness.outcomes[rid(1)], ProtocolError)
    assert [message.request_ids for message in harness.take()] == [[rid(1)]]
    harness.receive_invalid(rid(44))
    assert [message.request_ids for message in harness.take()] == [[rid(44)]]


def test_an_undecodable_message_that_is_no_answer_ends_nothing(harness):
    harness.submit(1)
    harness.take()
    harness.receive_invalid(rid(1), is_answer=False)
    assert harness.outcomes == {}
    assert harness.take() == []
    harness.result(rid(1))
    assert rid(1) in harness.outcomes


def test_errors_without_a_request_are_logged(harness):
    harness.error(None, "protocol_error")
    harness.receive_invalid(None)
    assert len(harness.warnings) == 2
    assert harness.warnings[0].fields["broker"] == FIRST
    assert not harness.outcomes


@pytest.mark.parametrize(
    ("code", "error"), [("unsupported_version", UnsupportedVersionError), ("unauthorized", UnauthorizedError)]
)
def test_a_rejected_connection_ends_everything(harness, code, error):
    harness.submit(1)
    harness.error(None, code)
    assert {type(end) for end in harness.outcomes.values()} == {error}
    assert harness.core.unfinished == 0


# ---- overloaded --------------------------------------------------------------------------------------------


def test_overloaded_is_an_error_by_default(harness):
    harness.submit(1)
    harness.error(rid(1), "overloaded", 2.0)
    assert isinstance(harness.outcomes[rid(1)], OverloadedError)
    assert harness.outcomes[rid(1)].retry_after_seconds == 2.0


def test_overloaded_is_retried_with_a_new_id():
    harness = connected(retry_overloaded=True)
    harness.submit(1, priority=5)
    (first,) = harness.take()
    harness.error(rid(1), "overloaded", 2.0)
    assert [message.request_ids for message in harness.take()] == [[rid(1)]]
    harness.advance_with_heartbeats(1.9)
    assert harness.take() == [], "not before the requested delay"
    harness.advance_with_heartbeats(2.2)
    (again,) = [message for message in harness.take() if message.request_id != rid(99)][:1]
    assert again.request_id != first.request_id
    assert again.priority == 5
    assert harness.payloads[again.request_id] == (BODY,)
    harness.result(again.request_id)
    assert isinstance(harness.outcomes[rid(1)], Answer)


def test_retries_are_spread_by_jitter():
    harness = connected(retry_overloaded=True)
    for number in range(1000, 1200):
        harness.submit(number)
        harness.error(rid(number), "overloaded", 10.0)
    harness.take()
    times = []
    for _ in range(40):
        harness.advance_with_heartbeats(0.5)
        new = {message.request_id for message in harness.take(Submit)} - {rid(99)}
        for request_id in new:
            harness.accepted(request_id)
        times += [harness.now] * len(new)
    assert len(times) == 200
    early, late = sum(time < 115 for time in times), sum(time >= 115 for time in times)
    assert early > 60
    assert late > 60


def test_each_retry_has_its_own_id():
    harness = connected(retry_overloaded=True)
    request_id = harness.submit(1)
    seen = {request_id}
    for _ in range(5):
        harness.error(request_id, "overloaded", 1.0)
        harness.take()
        harness.advance_with_heartbeats(2.1)
        (request_id,) = {message.request_id for message in harness.take(Submit)}
        assert request_id not in seen
        seen.add(request_id)


def test_the_old_id_of_a_retry_is_unknown():
    harness = connected(retry_overloaded=True)
    harness.submit(1)
    harness.error(rid(1), "overloaded", 5.0)
    harness.result(rid(1))
    assert rid(1) not in harness.outcomes


def test_a_waiting_retry_is_not_sent_early_after_a_broker_restart():
    harness = connected(retry_overloaded=True)
    harness.submit(1)
    harness.error(rid(1), "overloaded", 50.0)
    harness.take()
    harness.heartbeat(session=2)
    assert [message.request_id for message in harness.take()] == [rid(99)]


@pytest.mark.parametrize("after", [20.0, math.inf])
def test_a_retry_after_the_timeout_is_an_error_at_once(after):
    harness = connected(retry_overloaded=True)
    harness.submit(1, timeout_seconds=10.0)
    harness.error(rid(1), "overloaded", after)
    assert isinstance(harness.outcomes[rid(1)], OverloadedError)


# ---- cancelling --------------------------------------------------------------------------------------------


def test_a_cancelled_request_ends_when_the_broker_confirms_it(harness):
    harness.submit(1)
    harness.accepted(rid(1))
    harness.take()
    harness.cancel(1)
    assert harness.take() == [Cancel(request_id=rid(1))]
    assert rid(1) not in harness.outcomes
    harness.error(rid(1), "cancelled")
    assert isinstance(harness.outcomes[rid(1)], CancelledError)


def test_a_result_may_arrive_before_the_cancellation(harness):
    harness.submit(1)
    harness.cancel(1)
    harness.result(rid(1))
    assert isinstance(harness.outcomes[rid(1)], Answer)
    harness.error(rid(1), "cancelled")
    assert isinstance(harness.outcomes[rid(1)], Answer)


def test_a_cancellation_is_resent_until_it_is_answered_or_times_out(harness):
    harness.submit(1)
    harness.take()
    harness.cancel(1)
    harness.accepted(rid(1))  # sent before the broker received the cancellation
    harness.advance_with_heartbeats(2.5)
    assert harness.take() == [Cancel(request_id=rid(1))] * 2
    harness.advance_with_heartbeats(1.0)
    assert isinstance(harness.outcomes[rid(1)], CancelledError)
    assert "not confirmed" in harness.outcomes[rid(1)].message


def test_a_request_cancelled_before_it_was_sent_is_never_sent():
    harness = CoreHarness()
    key = harness.submit(1)
    harness.cancel(1)
    assert isinstance(harness.outcomes[key], CancelledError)
    harness.heartbeat()
    assert harness.take() == []


def test_a_cancellation_during_failover_is_sent_to_the_next_broker():
    harness = connected(FIRST, SECOND)
    harness.advance(3.1)
    harness.cancel(99)
    assert harness.take() == []
    harness.heartbeat()
    assert harness.take() == [Cancel(request_id=rid(99))]


def test_a_waiting_retry_is_cancelled_locally():
    harness = connected(retry_overloaded=True)
    harness.submit(1)
    harness.error(rid(1), "overloaded", 5.0)
    harness.take()
    harness.cancel(1)
    assert isinstance(harness.outcomes[rid(1)], CancelledError)
    harness.advance_with_heartbeats(20)
    assert [message for message in harness.take(Submit) if message.request_id != rid(99)] == []


def test_overloaded_after_a_cancellation_is_not_retried():
    harness = connected(retry_overloaded=True)
    harness.submit(1)
    harness.cancel(1)
    harness.error(rid(1), "overloaded", 1.0)
    assert isinstance(harness.outcomes[rid(1)], OverloadedError)


def test_cancelling_twice_or_an_unknown_request_does_nothing(harness):
    harness.submit(1)
    harness.cancel(1)
    harness.take()
    harness.cancel(1)
    harness.cancel(77)
    assert harness.take() == []


# ---- statistics --------------------------------------------------------------------------------------------


def test_an_answer_completes_its_query_only(harness):
    harness.stats(1)
    harness.stats(2)
    assert harness.take() == [StatsQuery(request_id=rid(1)), StatsQuery(request_id=rid(2))]
    harness.receive(Stats(request_id=rid(2)), b"map")
    assert harness.outcomes[rid(2)].payload == (b"map",)
    assert harness.outcomes.keys() == {rid(2)}


def test_a_late_answer_to_an_earlier_query_is_ignored(harness):
    harness.stats(1, timeout=5.0)
    harness.advance_with_heartbeats(5.1)
    harness.stats(2)
    harness.receive(Stats(request_id=rid(1)), b"old")
    harness.receive(Stats(request_id=rid(99)), b"of a request")
    assert rid(2) not in harness.outcomes
    harness.receive(Stats(request_id=rid(2)), b"new")
    harness.receive(Stats(request_id=rid(2)), b"again")
    assert harness.outcomes[rid(2)].payload == (b"new",)


def test_a_result_for_a_query_is_acknowledged_and_ignored(harness):
    harness.stats(1)
    harness.take()
    harness.result(rid(1))
    assert [message.request_ids for message in harness.take(Ack)] == [[rid(1)]]
    assert not harness.outcomes


def test_a_query_is_resent_and_times_out(harness):
    harness.stats(1, timeout=5.0)
    harness.advance_with_heartbeats(2.1)
    assert harness.take() == [StatsQuery(request_id=rid(1))] * 2
    harness.advance_with_heartbeats(3.0)
    assert isinstance(harness.outcomes[rid(1)], BrokerUnreachableError)


def test_statistics_without_a_frame_are_a_protocol_error(harness):
    harness.stats(1)
    harness.receive(Stats(request_id=rid(1)))
    assert isinstance(harness.outcomes[rid(1)], ProtocolError)


# ---- closing -----------------------------------------------------------------------------------------------


def test_closing_ends_everything_and_sends_goodbye(harness):
    harness.submit(1)
    harness.stats(2)
    harness.take()
    harness.core.handle(Received(_result(rid(1), worker="w", model="m", images=[])), harness.now)
    harness.close()
    assert [type(message) for message in harness.take()] == [Ack, Goodbye], "acknowledged first"
    assert isinstance(harness.outcomes[rid(99)], ClientClosedError)
    assert isinstance(harness.outcomes[rid(2)], ClientClosedError)
    assert harness.core.unfinished == 0
    assert harness.core.next_deadline() is None
    harness.close()
    harness.heartbeat()
    harness.advance(100)
    assert harness.sent == []


def test_no_goodbye_is_sent_without_a_connection():
    harness = CoreHarness()
    harness.submit(1)
    harness.close()
    assert harness.take() == []


def test_a_closed_core_rejects_requests(harness):
    harness.close()
    with pytest.raises(ClientClosedError):
        harness.submit(1)
    with pytest.raises(ClientClosedError):
        harness.core.handle(StatsRequested(rid(1), 1.0), harness.now)


def test_an_id_in_use_is_rejected(harness):
    with pytest.raises(ValueError, match="in use"):
        harness.submit(99)

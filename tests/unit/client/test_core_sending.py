"""Client core: connecting, sending, resending, failover, timeouts."""

import pytest

from imagegen_client.events import Answer, Disconnected, HandshakeFailed, HandshakeRejected
from imagegen_protocol import (
    BrokerUnreachableError,
    DeadlineExceededError,
    UnauthorizedError,
)
from imagegen_protocol.limits import MAX_HEARTBEAT_INTERVAL_SECONDS, MAX_LIVENESS, MIN_HEARTBEAT_INTERVAL_SECONDS
from imagegen_protocol.messages import (
    BrokerHeartbeat,
    ClientHeartbeat,
    Submit,
)
from tests.unit.client.core_harness import BODY, FIRST, SECOND, CoreHarness, connected, rid

# ---- connecting --------------------------------------------------------------------------------------------


def test_nothing_is_sent_before_the_first_request():
    harness = CoreHarness()
    assert harness.core.next_deadline() is None
    harness.heartbeat()
    harness.advance(100)
    assert (harness.connections, harness.sent) == ([], [])


def test_requests_are_sent_after_the_brokers_first_message():
    harness = CoreHarness()
    key = harness.submit(1)
    assert harness.connections == [FIRST]
    assert [type(message) for message in harness.sent] == [ClientHeartbeat]
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [key]
    assert harness.payloads[key] == (BODY,)


def test_a_second_request_waits_for_the_first_message_too():
    harness = CoreHarness()
    harness.submit(1)
    harness.submit(2)
    assert harness.connections == [FIRST]
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(1), rid(2)]


def test_a_request_ends_after_the_connect_timeout_without_a_broker():
    harness = CoreHarness(connect_timeout=5.0)
    key = harness.submit(1)
    harness.advance(4.9)
    assert not harness.outcomes
    harness.advance(0.2)
    assert isinstance(harness.outcomes[key], BrokerUnreachableError)
    assert FIRST in harness.outcomes[key].message
    assert "5 s" in harness.outcomes[key].message


def test_the_connect_timeout_is_ignored_once_a_broker_has_answered():
    harness = CoreHarness(connect_timeout=5.0)
    harness.submit(1)
    harness.heartbeat()
    harness.advance(1000)
    assert not harness.outcomes


def test_without_a_connect_timeout_a_request_waits():
    harness = CoreHarness()
    harness.submit(1)
    harness.advance(1000)
    assert not harness.outcomes
    assert len(harness.connections) > 100


def test_heartbeats_are_sent_at_the_announced_interval(harness):
    harness.heartbeat(interval=0.25)
    harness.take(ClientHeartbeat)
    for _ in range(8):
        harness.advance(0.25)
        harness.heartbeat(interval=0.25)
    assert len(harness.take(ClientHeartbeat)) == 8


@pytest.mark.parametrize(
    ("seconds", "liveness"),
    [(MAX_HEARTBEAT_INTERVAL_SECONDS, MAX_LIVENESS), (MIN_HEARTBEAT_INTERVAL_SECONDS, 1)],
)
def test_extreme_heartbeat_settings_neither_stop_the_client_nor_keep_it_busy(harness, seconds, liveness):
    harness.receive(BrokerHeartbeat(epoch=b"e" * 16, session=1, interval_seconds=seconds, liveness=liveness))
    assert harness.core.next_deadline() - harness.now <= MAX_HEARTBEAT_INTERVAL_SECONDS
    harness.advance(10)
    assert harness.ticks <= 10 / MIN_HEARTBEAT_INTERVAL_SECONDS + 1
    assert harness.core.next_deadline() - harness.now <= MAX_HEARTBEAT_INTERVAL_SECONDS


# ---- resending ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"epoch": b"f" * 16}, {"session": 2}])
def test_everything_is_resent_to_a_new_epoch_or_session(harness, change):
    harness.submit(1, priority=3, model="m")
    harness.accepted(rid(1))
    (first,) = harness.take()
    harness.heartbeat()
    assert harness.take() == []
    harness.heartbeat(**change)
    again = harness.take()
    assert [message.request_id for message in again] == [rid(99), rid(1)]
    assert again[1] == first
    harness.heartbeat(**change)
    assert harness.take() == []


def test_ended_requests_are_not_resent(harness):
    harness.submit(1)
    harness.result(rid(1))
    harness.take()
    harness.heartbeat(session=2)
    assert [message.request_id for message in harness.take(Submit)] == [rid(99)]


def test_an_unaccepted_request_is_resent_after_two_intervals(harness):
    harness.submit(1)
    harness.take()
    harness.advance_with_heartbeats(1.9)
    assert harness.take() == []
    harness.advance_with_heartbeats(0.2)
    assert [message.request_id for message in harness.take()] == [rid(1)]
    harness.accepted(rid(1))
    harness.advance_with_heartbeats(20)
    assert harness.take() == []


def test_the_resend_delay_follows_the_announced_interval(harness):
    harness.submit(1)
    harness.take()
    harness.heartbeat(interval=0.1)
    harness.advance(0.21)
    assert [message.request_id for message in harness.take()] == [rid(1)]


def test_progress_counts_as_acceptance(harness):
    harness.submit(1, progress=True)
    harness.take()
    harness.progress(rid(1))
    harness.advance_with_heartbeats(10)
    assert harness.take() == []
    assert [report.key for report in harness.progress_reports] == [rid(1)]


def test_progress_of_an_unknown_request_is_ignored(harness):
    harness.progress(rid(55))
    assert harness.progress_reports == []


def test_everything_is_resent_after_the_broker_counted_as_dead(harness):
    # The shell reads before it ticks: after this process was suspended, messages are handled first.
    harness.now += 10
    harness.accepted()
    assert [message.request_id for message in harness.take()] == [rid(99)]
    assert harness.connections == [FIRST]


# ---- failover ----------------------------------------------------------------------------------------------


def test_a_dead_broker_is_replaced_by_the_next_one():
    harness = connected(FIRST, SECOND)
    harness.advance(2.9)
    assert harness.connections == [FIRST]
    harness.advance(0.2)
    assert harness.connections == [FIRST, SECOND]
    assert harness.core.endpoint == SECOND
    assert harness.take() == [], "not before its first message"
    harness.heartbeat(epoch=b"f" * 16)
    assert [message.request_id for message in harness.take()] == [rid(99)]
    harness.result(rid(99))
    assert isinstance(harness.outcomes[rid(99)], Answer)


def test_all_endpoints_are_tried_in_turn():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.advance(9.5)
    assert harness.connections == [FIRST, SECOND, FIRST, SECOND]


def test_a_single_endpoint_is_connected_again():
    harness = connected()
    harness.advance(3.1)
    assert harness.connections == [FIRST, FIRST]


def test_the_next_broker_starts_with_the_default_interval():
    harness = connected(FIRST, SECOND, interval=60.0)
    harness.advance(180.1)
    assert harness.connections == [FIRST, SECOND]
    harness.advance(3.1)
    assert harness.connections == [FIRST, SECOND, FIRST]


# ---- rejected in the handshake -----------------------------------------------------------------------------


def test_a_rejected_handshake_moves_on_to_the_next_endpoint():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.handle(HandshakeRejected("no"))
    assert harness.connections == [FIRST, SECOND]
    assert not harness.outcomes
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(1)]


def test_a_request_rejected_by_all_endpoints_ends_with_the_reason():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.handle(HandshakeRejected("no"))
    harness.handle(HandshakeRejected("not you"))
    assert isinstance(harness.outcomes[rid(1)], UnauthorizedError)
    assert harness.outcomes[rid(1)].message == f"{SECOND}: not you"
    assert len(harness.connections) == 2, "each endpoint is tried once"


def test_a_rejection_is_forgotten_once_a_broker_has_answered():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.handle(HandshakeRejected("no"))
    harness.heartbeat()
    harness.handle(HandshakeRejected("no more"))
    assert harness.connections == [FIRST, SECOND, FIRST]
    assert not harness.outcomes


def test_a_failing_handshake_is_logged_once_per_reason():
    harness = CoreHarness(FIRST, connect_timeout=10.0)
    harness.submit(1)
    for reason in ("keys", "keys", "down", "down"):
        harness.handle(HandshakeFailed(reason))
    expected = [{"broker": FIRST, "reason": "keys"}, {"broker": FIRST, "reason": "down"}]
    assert [event.fields for event in harness.warnings] == expected
    assert not harness.outcomes
    harness.advance(11.0)
    assert isinstance(harness.outcomes[rid(1)], BrokerUnreachableError)
    assert harness.outcomes[rid(1)].message == f"no broker answered at {FIRST} within 10 s; {FIRST}: down"
    assert harness.outcomes[rid(1)].suspicions == {FIRST: "down"}


def test_handshake_failures_are_forgotten_once_a_broker_has_answered():
    harness = CoreHarness(FIRST)
    harness.submit(1)
    harness.handle(HandshakeFailed("keys"))
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(1)]
    harness.handle(HandshakeFailed("keys"))
    assert len(harness.warnings) == 2


def test_a_lost_connection_is_reopened_at_the_same_endpoint():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.heartbeat()
    harness.take()
    harness.now += 1.0
    harness.handle(Disconnected())
    assert harness.connections == [FIRST, FIRST]
    harness.handle(Disconnected())
    assert harness.connections == [FIRST, FIRST], "not sooner than after one interval"
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(1)]


# ---- timeouts ----------------------------------------------------------------------------------------------


def test_a_resent_request_carries_the_remaining_timeout(harness):
    harness.submit(1, timeout_seconds=10.0)
    assert harness.take()[0].timeout_seconds == 10.0
    harness.accepted(rid(1))
    harness.advance_with_heartbeats(4)
    harness.heartbeat(session=2)
    assert harness.take()[-1].timeout_seconds == pytest.approx(6.0)


def test_the_timeout_includes_waiting_for_the_connection():
    harness = CoreHarness()
    harness.submit(1, timeout_seconds=10.0)
    harness.advance(2)
    harness.heartbeat()
    assert harness.take()[0].timeout_seconds == pytest.approx(8.0)


def test_rounding_does_not_extend_the_timeout():
    harness = connected()
    harness.now = 1e9 / 3
    harness.heartbeat()
    harness.submit(1, timeout_seconds=7 * 24 * 3600.0)
    assert harness.take()[-1].timeout_seconds <= 7 * 24 * 3600.0


def test_the_client_times_out_one_interval_after_the_broker(harness):
    harness.submit(1, timeout_seconds=5.0)
    harness.accepted(rid(1))
    harness.advance_with_heartbeats(5.9)
    assert not harness.outcomes
    harness.advance_with_heartbeats(0.2)
    assert isinstance(harness.outcomes[rid(1)], DeadlineExceededError)
    assert "5 s" in harness.outcomes[rid(1)].message


def test_nothing_is_sent_after_the_timeout(harness):
    harness.submit(1, timeout_seconds=5.0)
    harness.accepted(rid(1))
    harness.take()
    harness.advance_with_heartbeats(5.5)
    harness.heartbeat(session=2)
    assert [message.request_id for message in harness.take()] == [rid(99)]


def test_a_timeout_before_the_first_connection_is_an_unreachable_broker():
    harness = CoreHarness(connect_timeout=60.0)
    key = harness.submit(1, timeout_seconds=2.0)
    harness.advance(2.1)
    assert isinstance(harness.outcomes[key], BrokerUnreachableError)

"""The client's core: connecting, sending, sending again, failing over, deadlines."""

import pytest

from imagegen_client.events import Answer, Lost, Refused, Suspected
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
from tests.unit.client.desk import BODY, FIRST, SECOND, Desk, connected, rid

# ---- connecting --------------------------------------------------------------------------------------------


def test_nothing_happens_before_something_is_asked():
    desk = Desk()
    assert desk.core.next_deadline() is None
    desk.heartbeat()
    desk.advance(100)
    assert (desk.dials, desk.sent) == ([], [])


def test_requests_go_out_once_the_broker_has_spoken():
    desk = Desk()
    key = desk.submit(1)
    assert desk.dials == [FIRST]
    assert [type(message) for message in desk.sent] == [ClientHeartbeat]
    desk.heartbeat()
    assert [message.request_id for message in desk.take()] == [key]
    assert desk.payloads[key] == (BODY,)


def test_a_second_request_waits_for_the_first_word_too():
    desk = Desk()
    desk.submit(1)
    desk.submit(2)
    assert desk.dials == [FIRST]
    desk.heartbeat()
    assert [message.request_id for message in desk.take()] == [rid(1), rid(2)]


def test_without_any_broker_a_request_ends_after_the_connect_timeout():
    desk = Desk(connect_timeout=5.0)
    key = desk.submit(1)
    desk.advance(4.9)
    assert not desk.ends
    desk.advance(0.2)
    assert isinstance(desk.ends[key], BrokerUnreachableError)
    assert FIRST in desk.ends[key].message
    assert "5 s" in desk.ends[key].message


def test_the_connect_timeout_does_not_count_once_a_broker_was_heard():
    desk = Desk(connect_timeout=5.0)
    desk.submit(1)
    desk.heartbeat()
    desk.advance(1000)
    assert not desk.ends


def test_without_a_connect_timeout_it_waits():
    desk = Desk()
    desk.submit(1)
    desk.advance(1000)
    assert not desk.ends
    assert len(desk.dials) > 100


def test_heartbeats_go_out_at_the_announced_interval(desk):
    desk.heartbeat(interval=0.25)
    desk.take(ClientHeartbeat)
    for _ in range(8):
        desk.advance(0.25)
        desk.heartbeat(interval=0.25)
    assert len(desk.take(ClientHeartbeat)) == 8


@pytest.mark.parametrize(
    ("seconds", "liveness"),
    [(MAX_HEARTBEAT_INTERVAL_SECONDS, MAX_LIVENESS), (MIN_HEARTBEAT_INTERVAL_SECONDS, 1)],
)
def test_the_widest_announcements_keep_the_client_awake_and_not_busy(desk, seconds, liveness):
    desk.hear(BrokerHeartbeat(epoch=b"e" * 16, session=1, interval_seconds=seconds, liveness=liveness))
    assert desk.core.next_deadline() - desk.now <= MAX_HEARTBEAT_INTERVAL_SECONDS
    desk.advance(10)
    assert desk.ticks <= 10 / MIN_HEARTBEAT_INTERVAL_SECONDS + 1
    assert desk.core.next_deadline() - desk.now <= MAX_HEARTBEAT_INTERVAL_SECONDS


# ---- sending again -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", [{"epoch": b"f" * 16}, {"session": 2}])
def test_another_epoch_or_session_makes_it_send_everything_again(desk, change):
    desk.submit(1, priority=3, model="m")
    desk.accepted(rid(1))
    (first,) = desk.take()
    desk.heartbeat()
    assert desk.take() == []
    desk.heartbeat(**change)
    again = desk.take()
    assert [message.request_id for message in again] == [rid(99), rid(1)]
    assert again[1] == first
    desk.heartbeat(**change)
    assert desk.take() == []


def test_what_ended_is_not_sent_again(desk):
    desk.submit(1)
    desk.result(rid(1))
    desk.take()
    desk.heartbeat(session=2)
    assert [message.request_id for message in desk.take(Submit)] == [rid(99)]


def test_a_request_that_is_not_accepted_is_sent_again_after_two_intervals(desk):
    desk.submit(1)
    desk.take()
    desk.alive(1.9)
    assert desk.take() == []
    desk.alive(0.2)
    assert [message.request_id for message in desk.take()] == [rid(1)]
    desk.accepted(rid(1))
    desk.alive(20)
    assert desk.take() == []


def test_the_wait_for_acceptance_follows_the_announced_interval(desk):
    desk.submit(1)
    desk.take()
    desk.heartbeat(interval=0.1)
    desk.advance(0.21)
    assert [message.request_id for message in desk.take()] == [rid(1)]


def test_progress_counts_as_acceptance(desk):
    desk.submit(1, progress=True)
    desk.take()
    desk.progress(rid(1))
    desk.alive(10)
    assert desk.take() == []
    assert [report.key for report in desk.reports] == [rid(1)]


def test_progress_of_an_unknown_request_is_nothing(desk):
    desk.progress(rid(55))
    assert desk.reports == []


def test_a_word_after_a_deadly_silence_makes_it_send_again(desk):
    # The shell reads before it ticks: after a sleep of this process the broker's word comes first.
    desk.now += 10
    desk.accepted()
    assert [message.request_id for message in desk.take()] == [rid(99)]
    assert desk.dials == [FIRST]


# ---- failing over ------------------------------------------------------------------------------------------


def test_a_dead_broker_is_left_for_the_next_one():
    desk = connected(FIRST, SECOND)
    desk.advance(2.9)
    assert desk.dials == [FIRST]
    desk.advance(0.2)
    assert desk.dials == [FIRST, SECOND]
    assert desk.core.endpoint == SECOND
    assert desk.take() == [], "not before it has spoken"
    desk.heartbeat(epoch=b"f" * 16)
    assert [message.request_id for message in desk.take()] == [rid(99)]
    desk.result(rid(99))
    assert isinstance(desk.ends[rid(99)], Answer)


def test_it_goes_round_until_one_speaks():
    desk = Desk(FIRST, SECOND)
    desk.submit(1)
    desk.advance(9.5)
    assert desk.dials == [FIRST, SECOND, FIRST, SECOND]


def test_one_endpoint_is_dialled_again():
    desk = connected()
    desk.advance(3.1)
    assert desk.dials == [FIRST, FIRST]


def test_the_next_broker_starts_with_the_default_interval():
    desk = connected(FIRST, SECOND, interval=60.0)
    desk.advance(180.1)
    assert desk.dials == [FIRST, SECOND]
    desk.advance(3.1)
    assert desk.dials == [FIRST, SECOND, FIRST]


# ---- refused in the handshake ------------------------------------------------------------------------------


def test_a_broker_that_lets_nobody_in_is_left_for_the_next_at_once():
    desk = Desk(FIRST, SECOND)
    desk.submit(1)
    desk.event(Refused("no"))
    assert desk.dials == [FIRST, SECOND]
    assert not desk.ends
    desk.heartbeat()
    assert [message.request_id for message in desk.take()] == [rid(1)]


def test_refused_by_all_it_ends_with_the_reason():
    desk = Desk(FIRST, SECOND)
    desk.submit(1)
    desk.event(Refused("no"))
    desk.event(Refused("not you"))
    assert isinstance(desk.ends[rid(1)], UnauthorizedError)
    assert desk.ends[rid(1)].message == f"{SECOND}: not you"
    assert len(desk.dials) == 2, "no ping-pong between them"


def test_a_refusal_is_forgotten_once_a_broker_has_spoken():
    desk = Desk(FIRST, SECOND)
    desk.submit(1)
    desk.event(Refused("no"))
    desk.heartbeat()
    desk.event(Refused("no more"))
    assert desk.dials == [FIRST, SECOND, FIRST]
    assert not desk.ends


def test_a_failing_handshake_is_an_outage_told_once_for_each_reason():
    desk = Desk(FIRST, connect_timeout=10.0)
    desk.submit(1)
    for reason in ("keys", "keys", "down", "down"):
        desk.event(Suspected(reason))
    assert desk.warnings == [f"broker {FIRST}: keys; trying again", f"broker {FIRST}: down; trying again"]
    assert not desk.ends
    desk.advance(11.0)
    assert isinstance(desk.ends[rid(1)], BrokerUnreachableError)
    assert desk.ends[rid(1)].message == f"no broker answered at {FIRST} within 10 s; {FIRST}: down"
    assert desk.ends[rid(1)].suspicions == {FIRST: "down"}


def test_a_suspicion_ends_once_a_broker_has_spoken():
    desk = Desk(FIRST)
    desk.submit(1)
    desk.event(Suspected("keys"))
    desk.heartbeat()
    assert [message.request_id for message in desk.take()] == [rid(1)]
    desk.event(Suspected("keys"))
    assert len(desk.warnings) == 2


def test_a_broken_connection_is_replaced_at_the_same_endpoint():
    desk = Desk(FIRST, SECOND)
    desk.submit(1)
    desk.heartbeat()
    desk.take()
    desk.now += 1.0
    desk.event(Lost())
    assert desk.dials == [FIRST, FIRST]
    desk.event(Lost())
    assert desk.dials == [FIRST, FIRST], "not sooner than after an interval"
    desk.heartbeat()
    assert [message.request_id for message in desk.take()] == [rid(1)]


# ---- deadlines ---------------------------------------------------------------------------------------------


def test_sent_again_it_has_the_seconds_that_are_left(desk):
    desk.submit(1, timeout_seconds=10.0)
    assert desk.take()[0].timeout_seconds == 10.0
    desk.accepted(rid(1))
    desk.alive(4)
    desk.heartbeat(session=2)
    assert desk.take()[-1].timeout_seconds == pytest.approx(6.0)


def test_waiting_for_the_connection_counts():
    desk = Desk()
    desk.submit(1, timeout_seconds=10.0)
    desk.advance(2)
    desk.heartbeat()
    assert desk.take()[0].timeout_seconds == pytest.approx(8.0)


def test_no_rounding_makes_the_deadline_longer():
    desk = connected()
    desk.now = 1e9 / 3
    desk.heartbeat()
    desk.submit(1, timeout_seconds=7 * 24 * 3600.0)
    assert desk.take()[-1].timeout_seconds <= 7 * 24 * 3600.0


def test_the_broker_gets_one_interval_to_say_it_itself(desk):
    desk.submit(1, timeout_seconds=5.0)
    desk.accepted(rid(1))
    desk.alive(5.9)
    assert not desk.ends
    desk.alive(0.2)
    assert isinstance(desk.ends[rid(1)], DeadlineExceededError)
    assert "5 s" in desk.ends[rid(1)].message


def test_past_its_deadline_nothing_is_sent(desk):
    desk.submit(1, timeout_seconds=5.0)
    desk.accepted(rid(1))
    desk.take()
    desk.alive(5.5)
    desk.heartbeat(session=2)
    assert [message.request_id for message in desk.take()] == [rid(99)]


def test_before_any_broker_the_deadline_ends_it_as_unreachable():
    desk = Desk(connect_timeout=60.0)
    key = desk.submit(1, timeout_seconds=2.0)
    desk.advance(2.1)
    assert isinstance(desk.ends[key], BrokerUnreachableError)

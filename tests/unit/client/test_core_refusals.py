"""Client core: endpoints that refuse the client, and requests that wait for a broker."""

import pytest

from imagegen_client.events import Answer, Disconnected, HandshakeRejected, Received, Tick
from imagegen_protocol import (
    BrokerUnreachableError,
    CancelledError,
    DeadlineExceededError,
    UnauthorizedError,
    UnsupportedVersionError,
)
from imagegen_protocol.messages import BrokerHeartbeat, ClientHeartbeat, Submit
from tests.unit.client.core_harness import FIRST, SECOND, CoreHarness, connected, rid

THIRD = "tcp://third:3"


def warnings(harness):
    return [(event.text, event.fields["broker"]) for event in harness.warnings if "broker" in event.fields]


# ---- refusals that are final -------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["unauthorized", "unsupported_version"])
def test_a_refusal_of_a_connection_leads_to_the_next_endpoint(code):
    harness = connected(FIRST, SECOND)
    harness.error(None, code)
    assert harness.connections == [FIRST, SECOND]
    assert not harness.outcomes
    assert warnings(harness) == [("refused by the broker", FIRST)]
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(99)]
    harness.result(rid(99))
    assert isinstance(harness.outcomes[rid(99)], Answer)


def test_an_endpoint_of_an_unreadable_version_leads_to_the_next_one():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.receive_invalid(None, UnsupportedVersionError)
    assert harness.connections == [FIRST, SECOND]
    harness.receive_invalid(None, UnsupportedVersionError)
    assert isinstance(harness.outcomes[rid(1)], UnsupportedVersionError)


def test_refusals_of_both_kinds_end_the_requests():
    harness = connected(FIRST, SECOND)
    harness.handle(HandshakeRejected("no"))
    harness.error(None, "unauthorized")
    assert isinstance(harness.outcomes[rid(99)], UnauthorizedError)


def test_all_endpoints_are_asked_again_after_all_have_refused():
    harness = CoreHarness(FIRST, SECOND)
    for number in (1, 2):
        harness.submit(number)
        harness.advance(2.0)
        harness.handle(HandshakeRejected("no"))
        assert not harness.outcomes.get(rid(number)), "the other endpoint has not refused it yet"
        harness.handle(HandshakeRejected("no"))
        assert isinstance(harness.outcomes[rid(number)], UnauthorizedError)
    assert harness.connections == [FIRST, SECOND, FIRST, SECOND]


def test_a_refused_client_without_requests_is_silent():
    harness = connected()
    harness.error(None, "unauthorized")
    harness.sent.clear()
    assert harness.core.next_deadline() is None
    harness.advance(1000.0)
    assert harness.core.handle(Tick(), harness.now) == []
    assert (harness.connections, harness.sent) == ([FIRST], [])
    harness.submit(1)
    assert harness.connections == [FIRST, FIRST]
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(1)]


def test_requests_soon_after_a_refusal_wait_for_the_next_connection():
    harness = connected()
    harness.error(None, "unauthorized")
    harness.submit(1)
    assert harness.connections == [FIRST]
    harness.advance(2.0)
    assert harness.connections == [FIRST, FIRST]


def test_what_is_left_on_a_refused_connection_is_ignored():
    harness = connected()
    harness.error(None, "unauthorized")
    harness.submit(1)
    harness.sent.clear()
    for event in (
        Disconnected(),
        HandshakeRejected("no"),
        Received(BrokerHeartbeat(epoch=b"e" * 16, session=1, interval_seconds=1.0, liveness=3)),
    ):
        assert harness.core.handle(event, harness.now) == []
    harness.result(rid(1))
    harness.receive_invalid(rid(1))
    assert harness.sent == []
    assert harness.outcomes.keys() == {rid(99)}


# ---- a broker that is full ---------------------------------------------------------------------------------


def test_a_full_broker_leads_to_the_next_endpoint():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.error(None, "overloaded", 3.0)
    assert harness.connections == [FIRST, SECOND]
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(1)]


def test_a_client_that_all_brokers_turn_away_waits_as_long_as_they_ask():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1)
    harness.error(None, "overloaded", 60.0)
    harness.error(None, "overloaded", 30.0)
    assert harness.connections == [FIRST, SECOND]
    harness.sent.clear()
    harness.advance(29.9)
    assert harness.sent == [], "neither heartbeats nor requests"
    assert harness.connections == [FIRST, SECOND]
    harness.advance(0.2)
    assert harness.connections == [FIRST, SECOND, FIRST]
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(1)]


def test_a_full_broker_is_logged_once():
    harness = CoreHarness(FIRST)
    harness.submit(1)
    for _ in range(20):
        harness.error(None, "overloaded", 3.0)
        harness.advance(5.0)
    assert len(harness.connections) == 21
    assert warnings(harness) == [("refused by the broker", FIRST)]


@pytest.mark.parametrize("seconds", [None, 0.0])
def test_a_full_broker_is_not_asked_again_at_once(seconds):
    harness = CoreHarness(FIRST)
    harness.submit(1)
    harness.error(None, "overloaded", seconds)
    harness.advance(0.9)
    assert harness.connections == [FIRST]


def test_clients_that_were_turned_away_together_do_not_return_together():
    delays = []
    for number in range(20):
        harness = CoreHarness(FIRST)
        harness.submit(number * 12 << 120)  # random in earnest
        harness.error(None, "overloaded", 3.0)
        delays.append(harness.core.next_deadline() - harness.now)
    assert len(set(delays)) == 20
    assert (min(delays), max(delays)) == (3.0, pytest.approx(4.5, rel=0.1))


def test_a_final_and_a_temporary_refusal_make_the_client_wait():
    harness = CoreHarness(FIRST, SECOND, THIRD)
    harness.submit(1)
    harness.handle(HandshakeRejected("no"))
    harness.error(None, "overloaded", 5.0)
    harness.error(None, "unsupported_version")
    assert not harness.outcomes
    harness.advance(5.1)
    assert harness.connections == [FIRST, SECOND, THIRD, FIRST]


def test_requests_end_while_all_brokers_turn_the_client_away():
    harness = CoreHarness(FIRST, connect_timeout=2.0)
    harness.submit(1)
    harness.submit(2)
    harness.error(None, "overloaded", 60.0)
    harness.cancel(2)
    assert isinstance(harness.outcomes[rid(2)], CancelledError)
    harness.advance(2.1)
    assert isinstance(harness.outcomes[rid(1)], BrokerUnreachableError)
    assert harness.outcomes[rid(1)].suspicions == {FIRST: "text"}
    harness.advance(1000.0)
    assert harness.connections == [FIRST], "nothing is left to connect for"


def test_a_client_that_loses_its_place_keeps_its_requests():
    harness = connected()
    harness.submit(1, timeout_seconds=20.0)
    harness.error(None, "overloaded", 3.0)
    harness.submit(2)
    harness.take()
    harness.advance(5.0)
    assert harness.take(Submit) == []
    harness.heartbeat()
    assert [message.request_id for message in harness.take()] == [rid(99), rid(1), rid(2)]
    harness.advance_with_heartbeats(20.0)
    assert isinstance(harness.outcomes[rid(1)], DeadlineExceededError)


def test_a_request_that_a_full_queue_rejects_is_no_refusal_of_the_client(harness):
    harness.submit(1)
    harness.error(rid(1), "overloaded", 3.0)
    assert harness.connections == [FIRST]
    assert rid(99) not in harness.outcomes


def test_a_refusal_is_no_sign_of_life():
    harness = CoreHarness(FIRST, SECOND, connect_timeout=5.0)
    harness.submit(1)
    harness.error(None, "overloaded", 3.0)
    assert harness.take() == []
    harness.advance(5.1)
    assert isinstance(harness.outcomes[rid(1)], BrokerUnreachableError)


# ---- waiting for a broker ----------------------------------------------------------------------------------


def reports(harness):
    return [event.fields for event in harness.warnings if event.text == "waiting for a broker"]


def test_waiting_requests_are_reported_at_growing_distances():
    harness = CoreHarness(FIRST, SECOND)
    harness.submit(1, progress=True)
    harness.submit(2)
    harness.advance(3600.0)
    seconds = [int(fields["seconds"]) for fields in reports(harness)]
    assert seconds == [5, 10, 20, 40, 80, 160, 320, 640, 1240, 1840, 2440, 3040]
    assert reports(harness)[0]["requests"] == "2"
    reason = f"no broker answers at {FIRST} or {SECOND}"
    assert reports(harness)[0]["reason"] == reason
    assert [(report.key, report.reason) for report in harness.waiting_reports] == [(rid(1), reason)] * len(seconds)


def test_a_broker_that_dies_is_reported_and_its_return_is_logged():
    harness = connected()
    harness.submit(1, preview=True)
    harness.heartbeat()
    harness.advance(7.9)
    assert reports(harness) == []
    harness.advance(0.2)
    assert len(harness.waiting_reports) == 1
    harness.advance(2.0)
    harness.heartbeat()
    assert [event.text for event in harness.notes] == ["broker answers again"]
    harness.advance_with_heartbeats(100.0)
    assert len(reports(harness)) == 1
    harness.advance(8.1)
    assert [fields["seconds"] for fields in reports(harness)] == ["5", "5"], "a new outage"


def test_a_request_submitted_during_an_outage_is_reported_at_once():
    harness = CoreHarness()
    harness.submit(1)
    harness.advance(1000.0)
    harness.submit(2, progress=True)
    harness.submit(3)
    assert [report.key for report in harness.waiting_reports] == [rid(2)]


def test_the_report_states_why_brokers_refuse_the_client():
    harness = CoreHarness()
    harness.submit(1, progress=True)
    harness.error(None, "overloaded", 60.0)
    harness.advance(5.1)
    assert harness.waiting_reports[0].reason == f"no broker answers at {FIRST}; {FIRST}: text"


def test_nothing_is_reported_without_waiting_requests():
    harness = connected()
    harness.result(rid(99))
    harness.advance(1000.0)
    harness.stats(1, timeout=100.0)
    harness.advance(50.0)
    assert reports(harness) == harness.waiting_reports == []
    assert harness.core.handle(Tick(), harness.now) is not None


def test_a_working_broker_is_not_reported(harness):
    harness.submit(1, progress=True)
    harness.accepted(rid(1))
    harness.advance_with_heartbeats(100.0)
    assert harness.warnings == harness.notes == harness.waiting_reports == []
    assert len(harness.take(ClientHeartbeat)) >= 100

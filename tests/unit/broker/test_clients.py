"""What clients see: acceptance, refusals, one terminal answer, acknowledgement, cancels, deadlines, death."""

import itertools

import pytest

from imagegen_broker.core.records import Settings
from imagegen_protocol.frames import encode
from imagegen_protocol.limits import MAX_HEADER_BYTES
from imagegen_protocol.messages import (
    BrokerHeartbeat,
    ClientHeartbeat,
    Error,
    Goodbye,
    Release,
    Resend,
    Stats,
    StatsQuery,
    Submit,
    Work,
)
from tests.unit.broker.bench import EPOCH, Bench, rid


def serving(**settings):
    """A bench past its grace, with one worker."""
    bench = Bench(**settings).past_grace()
    bench.ready("w")
    return bench


def test_a_request_goes_through_and_is_acknowledged():
    bench = serving()
    request = bench.submit(1)
    assert bench.accepted() == [request]
    assert bench.works("w") == [request]
    bench.result("w", request)
    assert bench.results() == [request]
    assert bench.ids(Release, "w") == []
    bench.ack(1)
    assert bench.ids(Release, "w") == [request]
    assert not bench.core.table.requests


def test_the_first_message_of_a_client_is_answered_with_a_heartbeat():
    bench = Bench()
    bench.client("c", ClientHeartbeat())
    (beat,) = bench.messages(BrokerHeartbeat, "client", "c")
    assert beat.epoch == EPOCH
    assert beat.session == 1
    assert beat.interval_seconds == bench.core.settings.interval


def test_a_new_broker_accepts_but_does_not_dispatch_during_its_grace():
    bench = Bench()
    bench.ready("w")
    request = bench.submit(1)
    assert bench.accepted() == [request]
    assert bench.works("w") == []
    bench.beat("w")
    bench.advance(bench.core.settings.grace)
    assert bench.works("w") == [request]


def test_submitting_again_is_accepted_again_and_made_once():
    bench = serving()
    request = bench.submit(1)
    bench.submit(1)
    assert bench.accepted() == [request, request]
    assert bench.works("w") == [request]


def test_submitting_an_answered_request_again_asks_its_worker_for_the_answer():
    bench = serving()
    request = bench.submit(1)
    bench.result("w", request)
    bench.submit(1)
    assert bench.ids(Resend, "w") == [request]
    bench.result("w", request)
    assert bench.results() == [request, request]


def test_an_acknowledged_id_of_the_same_client_is_ignored():
    bench = serving()
    request = bench.submit(1)
    bench.result("w", request)
    bench.ack(1)
    bench.submit(1)
    assert bench.works("w") == [request]
    assert not bench.core.table.requests


def test_another_client_takes_a_request_over_by_its_id():
    bench = serving()
    request = bench.submit(1, client="old")
    bench.submit(1, client="new")
    bench.result("w", request)
    assert bench.results("new") == [request]
    assert bench.results("old") == []
    bench.ack(1, client="old")
    assert bench.core.table.requests, "an ACK of another client's id is ignored"
    bench.ack(1, client="new")
    assert not bench.core.table.requests


def test_unacknowledged_answers_are_asked_for_again_at_growing_distances():
    bench = serving()
    request = bench.submit(1)
    bench.result("w", request)
    times = []
    start = bench.now
    for _ in range(200):
        bench.beat("w", finished=[request])
        bench.client("c", ClientHeartbeat())
        seen = len(bench.ids(Resend, "w"))
        bench.advance(0.5)
        if len(bench.ids(Resend, "w")) > seen:
            times.append(bench.now - start)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert len(times) >= 4
    assert gaps == sorted(gaps)
    assert gaps[-1] > 2 * gaps[0]


def test_an_answer_of_the_brokers_own_is_sent_again_until_acknowledged():
    bench = Bench().past_grace()
    request = bench.submit(1)
    bench.cancel(1)
    for _ in range(4):
        bench.advance(1.0)
        bench.client("c", ClientHeartbeat())
    assert bench.errors().count((request, "cancelled")) >= 2
    bench.ack(1)
    bench.clear()
    bench.advance(2.0)
    assert bench.errors() == []


@pytest.mark.parametrize("where", ["queued", "dispatched"])
def test_cancel_is_answered_once_and_reaches_the_worker(where):
    bench = serving()
    if where == "queued":
        for number in range(10, 14):
            bench.submit(number)  # fill the worker
    request = bench.submit(1)
    bench.cancel(1)
    assert bench.errors() == [(request, "cancelled")]
    assert bench.ids(Release, "w") == ([request] if where == "dispatched" else [])
    bench.cancel(1)
    assert bench.errors() == [(request, "cancelled")]


def test_cancel_after_the_result_changes_nothing():
    bench = serving()
    request = bench.submit(1)
    bench.result("w", request)
    bench.cancel(1)
    assert bench.errors() == []
    assert bench.results() == [request]


def test_cancel_of_an_unknown_id_is_answered():
    bench = serving()
    bench.cancel(7)
    assert bench.errors() == [(rid(7), "cancelled")]


def test_cancel_of_anothers_request_is_ignored():
    bench = serving()
    request = bench.submit(1)
    bench.cancel(1, client="thief")
    bench.result("w", request)
    assert bench.results() == [request]
    assert bench.errors("thief") == []


def test_a_copy_of_submit_that_was_delayed_on_an_old_connection_takes_no_request_away():
    bench = serving()
    request = bench.submit(1, client="old")
    bench.submit(1, client="new")
    bench.submit(1, client="old")
    bench.result("w", request)
    assert bench.results("new") == [request]
    assert bench.results("old") == []


def test_a_request_goes_back_to_the_living_session_of_its_client():
    bench = serving(liveness=3, interval=1.0)
    request = bench.submit(1, client="new")
    # The session of the old connection has expired; its copy of SUBMIT arrives only now, as of a new session.
    bench.submit(1, client="old")
    for _ in range(7):
        bench.client("new", ClientHeartbeat())
        bench.beat("w", running=[request])
        bench.advance(1.0)
    assert b"old" not in bench.core.clients.by_id
    bench.result("w", request)
    assert bench.results("new")[-1] == request


def test_a_client_that_reconnects_is_not_one_too_many():
    bench = serving(max_clients=1)
    request = bench.submit(1, client="old")
    bench.submit(1, client="new")
    bench.submit(2, client="other")
    assert bench.errors("new") == []
    assert bench.errors("other") == [(rid(2), "overloaded")]
    bench.result("w", request)
    assert bench.results("new") == [request]


def test_requeued_requests_leave_one_deadline_each():
    bench = Bench().past_grace()
    bench.submit(1, timeout_seconds=1e6)
    for number in range(90):
        bench.client("c", ClientHeartbeat())
        bench.ready(f"w{number}")
        bench.worker(f"w{number}", Goodbye())
    deadlines = bench.core.table.deadlines
    deadlines.add(bench.core.table.requests[rid(1)], 1)
    live = [entry for entry in deadlines._heap._entries if deadlines._heap._is_live(entry)]
    assert len(live) == 1


@pytest.mark.parametrize("worker", [True, False])
def test_a_deadline_passes_queued_and_dispatched(worker):
    bench = serving() if worker else Bench().past_grace()
    request = bench.submit(1, timeout_seconds=0.5)
    bench.advance(0.4)
    assert bench.errors() == []
    bench.advance(0.2)
    assert bench.errors() == [(request, "deadline_exceeded")]
    assert bench.ids(Release, "w") == ([request] if worker else [])


def test_a_worker_is_told_the_seconds_that_are_left():
    bench = Bench().past_grace()
    bench.submit(1, timeout_seconds=10.0)
    bench.advance(2.0)
    bench.ready("w")
    (work,) = bench.messages(Work, "worker", "w")
    assert work.timeout_seconds == pytest.approx(8.0)


def test_overload_by_count_says_when_to_come_back():
    bench = Bench(max_requests=2).past_grace()
    for number in (1, 2, 3):
        bench.submit(number)
    (error,) = bench.messages(Error, "client", "c")
    assert (error.request_id, error.code) == (rid(3), "overloaded")
    assert error.retry_after_seconds is not None
    assert error.retry_after_seconds > 0
    assert bench.accepted() == [rid(1), rid(2)]


def test_overload_by_bytes_and_by_client():
    by_bytes = Bench(max_bytes=10).past_grace()
    for number in (1, 2, 3):
        by_bytes.submit(number)  # 4 bytes each
    assert by_bytes.errors() == [(rid(3), "overloaded")]
    by_client = Bench(max_requests_per_client=1).past_grace()
    by_client.submit(1)
    by_client.submit(2)
    by_client.submit(3, client="other")
    assert by_client.errors() == [(rid(2), "overloaded")]
    assert by_client.accepted("other") == [rid(3)]


def test_a_submit_without_a_body_is_refused():
    bench = serving()
    bench.client("c", Submit(request_id=rid(1)))
    assert bench.errors() == [(rid(1), "invalid_request")]


def test_a_model_that_nobody_serves_is_refused_and_the_served_are_listed():
    bench = serving()
    bench.submit(1, model="other")
    (error,) = bench.messages(Error, "client", "c")
    assert error.code == "model_not_found"
    assert "'other'" in error.message
    assert error.message.endswith("served are: m")


def test_the_list_of_models_never_outgrows_a_header():
    bench = serving()
    for number in range(4):
        bench.ready(f"w{number}", models=[f"{number}-{index}".ljust(128, "x") for index in range(256)])
    bench.submit(1, model="other")
    (error,) = bench.messages(Error, "client", "c")
    assert "and 961 more" in error.message
    assert len(encode(error)) < MAX_HEADER_BYTES


def test_while_no_worker_is_there_every_model_may_wait():
    bench = Bench().past_grace()
    first, second = bench.submit(1), bench.submit(2, model="m")
    assert bench.accepted() == [first, second]
    bench.ready("w")
    assert sorted(bench.works("w")) == [first, second]


def test_a_dead_clients_requests_are_given_up():
    bench = serving()
    for number in range(6):
        bench.submit(number)
    for _ in range(7):
        bench.beat("w", running=[rid(0), rid(1)], queued=[rid(2), rid(3)])
        bench.advance(1.0)
    assert not bench.core.table.requests
    assert not bench.core.clients.by_id
    assert set(bench.ids(Release, "w")) == {rid(n) for n in range(4)}
    assert bench.core.table.counters.abandoned == 6


def test_a_client_takes_its_requests_to_a_new_connection_after_a_silence_of_both():
    bench = serving(liveness=3, interval=1.0)
    request = bench.submit(1, client="old")
    for _ in range(4):
        bench.beat("w", running=[request])
        bench.advance(1.0)
    bench.submit(1, client="new")
    bench.result("w", request)
    assert bench.results("new") == [request]
    assert bench.core.table.counters.accepted == 1


def test_a_client_thought_dead_learns_it_by_a_new_session():
    bench = Bench()
    bench.client("c", ClientHeartbeat())
    bench.advance(7.0)
    bench.clear()
    bench.client("c", ClientHeartbeat())
    assert [beat.session for beat in bench.messages(BrokerHeartbeat, "client", "c")] == [2]


def test_goodbye_gives_up_what_is_unfinished():
    bench = serving()
    request = bench.submit(1)
    bench.client("c", Goodbye())
    assert bench.ids(Release, "w") == [request]
    assert not bench.core.clients.by_id


def test_clients_share_fairly_and_priority_goes_first():
    bench = Bench().past_grace()
    for number in range(100):
        bench.submit(number, client="greedy")
    bench.submit(200, client="modest")
    bench.submit(300, client="greedy", priority=5)
    bench.ready("w", capacity=3)
    assert bench.works("w") == [rid(300), rid(0), rid(200)]


def test_statistics_answer_over_the_wire():
    bench = serving()
    bench.submit(1)
    bench.client("c", StatsQuery(request_id=rid(9)))
    side, peer, message, payload = bench.sent[-1]
    assert (side, peer, message) == ("client", b"c", Stats(request_id=rid(9)))
    assert len(payload) == 1


def test_settings_derive_their_times_from_the_interval():
    settings = Settings(epoch=EPOCH, interval=0.5, liveness=4)
    assert settings.grace == 1.0
    assert settings.silence == 2.0


def test_there_is_no_place_for_one_client_too_many():
    bench = Bench(max_clients=1).past_grace()
    bench.submit(1, "first")
    bench.submit(2, "second")
    (error,) = bench.messages(Error, "client", "second")
    assert (error.request_id, error.code) == (rid(2), "overloaded")
    assert error.retry_after_seconds == bench.core.settings.silence
    assert list(bench.core.clients.by_id) == [b"first"]
    bench.client("first", Goodbye())
    bench.submit(2, "second")
    assert rid(2) in bench.accepted("second")

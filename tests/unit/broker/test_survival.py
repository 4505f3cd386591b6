"""Rules that the simulation asked for: clients back from the dead, brokers that slept, models not seen yet."""

import pytest

from imagegen_protocol.limits import MAX_TIMEOUT_SECONDS
from imagegen_protocol.messages import ClientHeartbeat, Error, Goodbye, Release, Resend, Work
from tests.unit.broker.bench import Bench, rid


def serving(**settings):
    bench = Bench(**settings).past_grace()
    bench.ready("w")
    return bench


def test_a_client_back_from_the_dead_is_served_again():
    bench = serving()
    request = bench.submit(1)
    for _ in range(7):
        bench.beat("w", running=[request])
        bench.advance(1.0)
    assert not bench.core.clients.by_id
    assert bench.ids(Release, "w")[0] == request
    bench.beat("w")
    bench.submit(1)
    assert bench.works("w") == [request, request]


def test_a_copy_that_a_worker_still_has_is_attached_when_the_client_comes_back():
    bench = serving()
    request = bench.submit(1)
    bench.client("c", Goodbye())
    bench.beat("w", running=[request])
    bench.submit(1, client="d")
    assert bench.works("w") == [request]
    assert bench.ids(Resend, "w") == [request]


def test_a_broker_that_slept_buries_nobody_before_it_has_read():
    bench = serving()
    request = bench.submit(1)
    bench.beat("w", running=[request])
    bench.now += 30.0
    bench.settle()
    assert list(bench.core.workers.by_id) == [b"w"]
    assert list(bench.core.clients.by_id) == [b"c"]
    bench.advance(1.0)
    assert not bench.core.workers.by_id
    assert not bench.core.clients.by_id


def test_a_request_that_moves_on_goes_to_the_copy_that_another_broker_has_given():
    bench = serving()
    request = bench.submit(1)
    bench.ready("v", running=[request])  # refused a copy: it is given up, but another broker owns it
    assert bench.ids(Release, "v") == [request]
    bench.worker("w", Goodbye())
    assert bench.works("v") == []
    assert bench.ids(Resend, "v") == [request]


def test_a_new_broker_refuses_no_model_before_it_knows_the_workers():
    bench = Bench()
    bench.ready("w", models=["m"])
    known, unknown = bench.submit(1, model="n"), bench.submit(2, model="typo")
    assert bench.accepted() == [known, unknown]
    bench.ready("v", models=["n"])
    for _ in range(3):
        bench.client("c", ClientHeartbeat())
        bench.beat("w")
        bench.beat("v")
        bench.advance(1.0)
    assert bench.works("v") == [known]
    assert (unknown, "model_not_found") in bench.errors()
    assert {request for request, _ in bench.errors()} == {unknown}


def test_a_model_whose_workers_are_gone_for_now_is_waited_for():
    bench = serving()
    bench.ready("v", models=["n"])
    bench.worker("v", Goodbye())
    request = bench.submit(1, model="n")
    assert bench.errors() == []
    bench.ready("again", models=["n"])
    assert bench.works("again") == [request]


def test_a_deadline_holds_for_an_answer_that_was_lost():
    bench = serving()
    request = bench.submit(1, timeout_seconds=20.0)
    bench.result("w", request)
    bench.advance(0.5)
    bench.core.table.deadlines.next()  # drops the entry of what is answered
    bench.worker("w", Goodbye())
    for _ in range(25):
        bench.client("c", ClientHeartbeat())
        bench.advance(1.0)
    assert (request, "deadline_exceeded") in bench.errors()


def test_an_answer_whose_holder_was_struck_off_is_taken_from_it():
    bench = serving()
    request = bench.submit(1)
    bench.result("w", request)
    bench.worker("w", Goodbye())
    bench.ready("w")
    bench.result("w", request)
    assert bench.ids(Release, "w") == []
    assert bench.results() == [request, request]


def test_a_worker_out_of_reach_gets_nothing_until_it_says_what_it_has():
    bench = serving()
    request = bench.submit(1)
    bench.core.workers.send_failed(b"w", None)
    bench.result("w", request)
    bench.submit(2)
    assert bench.works("w") == [request]
    bench.beat("w", finished=[request])
    assert bench.works("w") == [request, rid(2)]


def test_a_cancel_does_not_cost_the_client_its_turn():
    bench = Bench().past_grace()
    for number in range(3):
        bench.submit(number, client="a")
        bench.submit(10 + number, client="b")
    bench.cancel(0, client="a")
    bench.ready("w", capacity=2)
    assert bench.works("w") == [rid(1), rid(10)]


@pytest.mark.parametrize(("size", "refused"), [(10, False), (11, True)])
def test_a_client_is_bounded_by_bytes(size, refused):
    bench = Bench(max_bytes_per_client=14).past_grace()
    bench.submit(1)  # 4 bytes
    bench.submit_bytes(2, size)
    assert (bench.errors() == [(rid(2), "overloaded")]) is refused
    bench.submit_bytes(3, 14, client="other")
    assert bench.accepted("other") == [rid(3)]


def test_the_time_to_come_back_follows_from_the_measured_rate():
    waits = []
    for answers in (1, 50):
        bench = serving(max_requests=60)
        for _ in range(20):
            for number in range(answers):
                request = bench.submit(number)
                bench.result("w", request)
                bench.cancel(number)
                bench.core.table.recent_ids.clear()
                bench.ack(number)
                bench.core.table.recent_ids.clear()
            bench.client("c", ClientHeartbeat())
            bench.beat("w")
            bench.advance(1.0)
        for number in range(100, 170):
            bench.submit(number)
        waits.append(bench.messages(Error, "client", "c")[-1].retry_after_seconds)
    slow, fast = waits
    assert slow > 5 * fast


def test_the_longest_timeout_stays_within_its_range_whatever_the_clock_shows():
    bench = Bench().past_grace()
    bench.now = 1000000.1
    assert bench.now + MAX_TIMEOUT_SECONDS - bench.now > MAX_TIMEOUT_SECONDS, "the sum is rounded up"
    bench.ready("w")
    bench.submit(1, timeout_seconds=MAX_TIMEOUT_SECONDS)
    (work,) = bench.messages(Work, "worker", "w")
    assert work.timeout_seconds == MAX_TIMEOUT_SECONDS

"""What the broker has to tell for the log: the end of each request, and the coming and going of workers."""

import logging

import pytest

from imagegen_protocol.messages import ClientHeartbeat, Goodbye
from tests.unit.broker.bench import Bench, rid


def serving(capacity=4, **settings):
    bench = Bench(log_requests=True, **settings).past_grace()
    bench.ready("w", capacity=capacity)
    bench.log_events.clear()
    return bench


def told(bench, text):
    return [note.fields for note in bench.log_events if note.text == text]


def test_an_answer_is_told_with_its_times():
    bench = serving(capacity=1)
    bench.submit(1)
    bench.submit(2)
    bench.advance(0.5)
    bench.result("w", rid(1))
    bench.advance(0.25)
    bench.result("w", rid(2))
    first, second = told(bench, "request answered")
    assert first == {
        "request_id": rid(1).hex(),
        "client": 1,
        "attempt": 1,
        "worker": "w",
        "outcome": "result",
        "queue_seconds": 0.0,
        "total_seconds": 0.5,
    }
    assert (second["queue_seconds"], second["total_seconds"]) == pytest.approx((0.5, 0.75))


def test_an_error_is_told_by_its_code():
    bench = serving()
    bench.submit(1)
    bench.error("w", rid(1), "generation_failed")
    assert [fields["outcome"] for fields in told(bench, "request answered")] == ["generation_failed"]


def test_what_never_had_a_worker_names_none():
    bench = Bench(log_requests=True).past_grace()
    bench.submit(1, timeout_seconds=2)
    bench.advance(3)
    [fields] = told(bench, "request answered")
    assert "worker" not in fields
    assert (fields["outcome"], fields["attempt"], fields["queue_seconds"]) == ("deadline_exceeded", 0, 2.0)


def test_a_cancelled_one_names_the_worker_that_had_it():
    bench = serving()
    bench.submit(1)
    bench.cancel(1)
    [fields] = told(bench, "request answered")
    assert (fields["outcome"], fields["worker"]) == ("cancelled", "w")


def test_a_refusal_is_told():
    bench = serving(max_requests=1, max_clients=1)
    bench.submit(1)
    bench.submit(2)
    bench.submit(3, client="another")
    assert told(bench, "request rejected") == [
        {"request_id": rid(2).hex(), "outcome": "overloaded", "client": 1},
        {"request_id": rid(3).hex(), "outcome": "overloaded"},
    ]


def test_a_client_that_leaves_abandons_what_it_has_not_received():
    bench = serving()
    bench.submit(1)
    bench.submit(2)
    bench.result("w", rid(2))
    bench.client("c", Goodbye())
    assert [fields["request_id"] for fields in told(bench, "request abandoned")] == [rid(1).hex()]


def test_a_dead_worker_is_told_and_what_moves_on():
    bench = serving()
    bench.submit(1)
    for _ in range(4):
        bench.advance(1)
        bench.client("c", ClientHeartbeat())
    [lost] = told(bench, "worker lost")
    assert (lost["worker"], lost["requests"]) == ("w", 1)
    [moved] = told(bench, "request requeued")
    assert (moved["request_id"], moved["worker"], moved["reason"]) == (rid(1).hex(), "w", "worker_lost")


def test_workers_are_told_whether_or_not_requests_are():
    bench = Bench().past_grace()
    bench.ready("w", worker_id=b"1".ljust(16))
    bench.ready("x", name="w", worker_id=b"2".ljust(16))
    bench.submit(1)
    bench.result("w", rid(1))
    bench.worker("w", Goodbye())
    assert [(note.level, note.text) for note in bench.log_events] == [
        (logging.INFO, "worker registered"),
        (logging.WARNING, "worker rejected"),
        (logging.INFO, "worker left"),
    ]


def test_a_hanging_worker_is_told_once():
    bench = serving(step_timeout=5.0)
    bench.submit(1)
    for age in (4.0, 6.0, 7.0):
        bench.beat("w", running=[rid(1)], step_age_seconds=age)
    assert told(bench, "worker hung") == [{"worker": "w", "step_age_seconds": 6.0, "requests": 1}]


def test_a_silent_client_is_told():
    bench = serving()
    bench.submit(1)
    bench.advance(2)
    bench.beat("w", running=[rid(1)])
    bench.advance(2)
    bench.beat("w", running=[rid(1)])
    bench.advance(2)
    assert told(bench, "client lost") == [{"client": 1, "requests": 1}]


def test_a_worker_with_many_models_makes_no_long_line():
    bench = Bench()
    bench.ready("w", models=[f"{'m' * 100}{number}" for number in range(200)])
    [line] = [each for each in bench.log_events if each.text == "worker registered"]
    assert line.fields["models"].endswith(" and 192 more")
    assert len(line.fields["models"]) < 1000

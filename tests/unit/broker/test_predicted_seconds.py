"""Decisions by the predicted seconds of requests: deadlines, the bound of the queue, retries and wrong reports."""

import pytest

from imagegen_protocol.costs import CostModel, RequestShape
from imagegen_protocol.messages import Error
from tests.unit.broker.bench import Bench, rid

MEGAPIXEL = RequestShape(width=1000, height=1000, num_inference_steps=10)
"""Takes 10 s on a worker of one second per forward and megapixel."""


def serving(*seconds, capacity=1, **settings):
    """A broker with workers that take so many seconds per forward and megapixel."""
    bench = Bench(interval=1000.0, **settings).past_grace()
    for index, each in enumerate(seconds):
        costs = {"m": CostModel(forward_seconds=0.0, megapixel_seconds=each)}
        bench.ready(f"w{index}", capacity=capacity, costs=costs, batching="continuous")
    return bench


def errors(bench):
    return {error.request_id: error for error in bench.messages(Error, "client", "c")}


def test_a_request_that_no_worker_can_finish_in_time_ends_at_once():
    bench = serving(2.0, 1.0)
    bench.submit(1, shape=MEGAPIXEL, timeout_seconds=5.0)
    error = errors(bench)[rid(1)]
    assert error.code == "deadline_exceeded"
    assert error.message == "the request needs about 10 s on the fastest worker, 5 s are left"
    assert not bench.works("w0") + bench.works("w1")


@pytest.mark.parametrize("left", [8.0, 12.0])
def test_a_request_that_the_fastest_worker_may_finish_in_time_is_dispatched(left):
    bench = serving(2.0, 1.0)
    request = bench.submit(1, shape=MEGAPIXEL, timeout_seconds=left)
    assert bench.works("w0") + bench.works("w1") == [request]


def test_a_request_that_waited_too_long_to_be_finished_is_not_dispatched():
    bench = serving(1.0)
    first = bench.submit(1, shape=MEGAPIXEL)
    late = bench.submit(2, shape=MEGAPIXEL, timeout_seconds=12.0)
    bench.now += 6.0
    bench.result("w0", first)
    assert bench.works("w0") == [first]
    assert "6 s are left" in errors(bench)[late].message


def test_a_deadline_is_not_judged_while_the_cost_on_a_worker_is_unknown():
    bench = serving(1.0)
    bench.ready("unknown")
    bench.submit(1, shape=MEGAPIXEL, timeout_seconds=1.0)
    assert not errors(bench)


def test_a_fast_worker_that_joins_or_leaves_changes_what_is_possible():
    bench = serving(1.0)
    costs = {"m": CostModel(forward_seconds=0.0, megapixel_seconds=0.1)}
    bench.ready("fast", costs=costs, batching="continuous")
    bench.submit(1, shape=MEGAPIXEL, timeout_seconds=2.0)
    assert not errors(bench)
    bench.core.workers.remove(bench.core.workers.by_id[b"fast"], bench.now)
    bench.submit(2, shape=MEGAPIXEL, timeout_seconds=2.0)
    assert rid(2) in errors(bench)


def test_the_bound_of_the_queue_counts_predicted_seconds():
    bench = serving(1.0, max_queue_seconds=15.0)
    for number in range(3):
        bench.submit(number, shape=MEGAPIXEL)  # one runs, 20 s wait
    bench.submit(3, shape=RequestShape(width=10, height=10, num_inference_steps=1))
    error = errors(bench)[rid(3)]
    assert (error.code, error.message) == (
        "overloaded",
        "requests for this model wait for about 20 s, at most 15 s are allowed",
    )
    assert error.retry_after_seconds == pytest.approx(2.0)


def test_small_requests_fill_a_bounded_queue_later_than_large_ones():
    bench = serving(1.0, max_queue_seconds=15.0)
    for number in range(50):
        bench.submit(number, shape=RequestShape(width=100, height=100, num_inference_steps=10))
    assert not errors(bench)

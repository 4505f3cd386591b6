"""The statistics of a broker: one unit for depth, load and capacity, and numbers that every reader can read."""

import json
import math

import pytest

from imagegen_protocol.costs import CostModel
from imagegen_protocol.limits import MAX_JSON_INTEGER
from imagegen_protocol.messages import (
    ClientHeartbeat,
    Error,
    Fetch,
    Ready,
    Stats,
    StatsQuery,
    WorkerStats,
)
from imagegen_protocol.statistics import from_msgpack, to_json, to_msgpack
from tests.unit.broker.bench import Bench, rid
from tests.unit.broker.transfers import received


@pytest.fixture
def bench():
    return Bench().past_grace()


def gpu(bench, worker="w"):
    (found,) = [each for each in bench.core.statistics(bench.now).per_gpu_stats if each.worker == worker]
    return found


def test_a_full_worker_has_as_many_images_as_its_capacity(bench):
    bench.ready("w", capacity=16)
    for number in range(6):
        bench.submit(number, images=4)
    assert (gpu(bench).current_queue_depth, gpu(bench).capacity) == (16, 16)
    at_worker = bench.works("w")
    assert len(at_worker) == 4
    bench.beat("w", running=at_worker[:2], queued=at_worker[2:])
    assert (gpu(bench).running, gpu(bench).current_queue_depth) == (8, 16)
    assert bench.core.statistics(bench.now).queued_requests == 2, "requests, as the name says"


def test_a_request_of_another_broker_counts_as_one_image(bench):
    bench.ready("w", capacity=16)
    bench.beat("w", running=[bytes(15) + b"a"], queued=[bytes(15) + b"b"])
    assert (gpu(bench).running, gpu(bench).current_queue_depth) == (1, 2)


def test_the_measured_costs_and_loaded_loras_of_a_worker_are_reported(bench):
    cost = CostModel(forward_seconds=0.03, megapixel_seconds=0.05, error=0.1, samples=20)
    bench.ready("w", costs={"m": cost, "not served": cost}, loaded_loras=["ink", "chalk"])
    bench.beat("w", loaded_loras=["ink"])
    assert gpu(bench).costs == {"m": cost}, "a report without costs changes nothing"
    assert gpu(bench).loaded_loras == ["ink"]


def numbers(value):
    if isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from numbers(each)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


@pytest.mark.parametrize("seconds", [math.inf, 1e308])
def test_every_number_is_finite_and_exact_whatever_a_worker_reports(bench, seconds):
    most = 2**63 - 1
    totals = WorkerStats(
        total_requests=most,
        total_failed=most,
        total_batches=1,
        total_batched_requests=most,
        total_images=most,
        busy_seconds=seconds,
    )
    bench.ready("w", capacity=2, pid=most)
    for number in range(5):
        bench.submit(number)
    bench.beat(
        "w", running=bench.works("w"), stats=totals, seconds_per_image=seconds, step_age_seconds=seconds / 2
    )
    statistics = bench.core.statistics(bench.now)
    assert from_msgpack(to_msgpack(statistics)) == statistics
    found = list(numbers(json.loads(to_json(statistics))))
    assert len(found) > 40
    assert all(math.isfinite(number) for number in found)
    assert all(number <= MAX_JSON_INTEGER for number in found if isinstance(number, int))


def ready_message(number):
    return Ready(
        worker_id=rid(number),
        name=f"w{number}",
        host="a-host-with-a-long-name",
        gpu_id=0,
        device="a device with a long name",
        backend="test",
        models=["m"],
        capacity=4,
        max_batch_size=4,
    )


def test_long_statistics_are_fetched_and_computed_twice_a_second_at_most():
    bench = Bench().past_grace()
    for number in range(100):
        bench.worker(f"w{number}", ready_message(number))
    for query in (1, 2):
        bench.client("c", StatsQuery(request_id=rid(query)))
    first, second = bench.messages(Stats, "client", "c")
    assert (first.request_id, second.request_id) == (rid(1), rid(2))
    assert first.payload_id == second.payload_id
    (size,) = first.frame_bytes
    message = Fetch(request_id=rid(1), payload_id=first.payload_id, offset=0, length=size)
    bench.client("c", message)
    assert sum(part for _, part in received(bench)) == size
    bench.advance(0.6)
    bench.client("c", StatsQuery(request_id=rid(3)))
    assert bench.messages(Stats, "client", "c")[2].payload_id != first.payload_id


def test_a_client_beyond_the_maximum_gets_no_statistics():
    bench = Bench(max_clients=1).past_grace()
    bench.client("c", ClientHeartbeat())
    bench.client("d", StatsQuery(request_id=rid(1)))
    assert bench.messages(Stats, "client", "d") == []
    assert [error.code for error in bench.messages(Error, "client", "d")] == ["overloaded"]

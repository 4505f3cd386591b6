"""No step grows with the workers, the requests that wait, or the clients: counted in lines, not in time."""

import pytest

from benchmarks.growth.measure import STEPS
from benchmarks.growth.rig import Rig
from imagegen_broker.scheduling.strategies import STRATEGIES
from tests.unit.broker.bench import Bench, rid
from tests.unit.broker.test_costs import lines_of

TIMES = 24
"""Steps that are counted together: some work is done once for several of them."""


def cost(step, workers=4, queued=40, clients=4, strategy="round-robin"):
    rig = Rig(workers=workers, queued=queued, clients=clients, strategy=strategy)
    step(rig)

    def several():
        for _ in range(TIMES):
            step(rig)

    return lines_of(several)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", STEPS)
def test_no_step_grows(name, strategy):
    step, _ = STEPS[name]
    base = cost(step, strategy=strategy)
    assert cost(step, queued=2000, strategy=strategy) < 1.5 * base
    assert cost(step, clients=400, strategy=strategy) < 1.5 * base
    # With few workers, `least-wait` compares fewer candidates.
    base = cost(step, workers=16, strategy=strategy)
    assert cost(step, workers=128, strategy=strategy) < 1.5 * base


def test_a_worker_that_registers_costs_the_same_however_many_are_there():
    def registering(others):
        bench = Bench(strategy="least-wait").past_grace()
        for number in range(others):
            bench.ready(f"other {number}")
        bench.check = lambda: None
        return lines_of(lambda: bench.ready("new"))

    assert registering(200) < 1.2 * registering(5)


def busy(bench, name, count, seconds, begun):
    """A worker that runs one batch since a time."""
    bench.now = begun
    ids = [rid(int(1e6 * seconds) * 1000 + len(name) * 100 + number) for number in range(count)]
    bench.ready(name, capacity=2 * count, running=ids, seconds_per_image=seconds)


def test_least_wait_sees_how_far_a_batch_is():
    bench = Bench(strategy="least-wait", interval=1000.0).past_grace()
    start = bench.now
    busy(bench, "late", 4, 1.0, start)
    busy(bench, "early", 4, 1.0, start + 3.0)
    bench.now = start + 3.5
    for number in range(3):
        bench.submit(number)
    # 0.5 s are left to the one, 3.5 s to the other: it ends three more requests before the other ends one.
    assert len(bench.works("late")) == 3
    assert not bench.works("early")


def test_least_wait_does_not_prefer_a_worker_that_should_have_ended_long_ago():
    bench = Bench(strategy="least-wait", interval=1000.0).past_grace()
    busy(bench, "hangs", 4, 1.0, bench.now)
    bench.now += 100.0
    bench.ready("idle", capacity=8, seconds_per_image=1.5)
    for number in range(3):
        bench.submit(number)
    # It may end now and be done with one more in 1 s, the other in 1.5 s: then they take turns.
    assert len(bench.works("idle")) >= 1
    assert len(bench.works("hangs")) <= 2


def test_a_plan_is_made_anew_for_what_came_since():
    bench = Bench(strategy="least-wait", interval=1000.0).past_grace()
    bench.ready("fast", capacity=2, seconds_per_image=0.1)
    bench.ready("slow", capacity=2, seconds_per_image=1.0)
    for number in range(6):
        bench.submit(number)
    assert not bench.works("slow"), "the fast one makes six before the slow one makes one"
    for number in range(6, 20):
        bench.submit(number)
    assert bench.works("slow")


def test_a_batch_that_begins_before_the_last_ones_answers_came_is_not_taken_for_older():
    bench = Bench(strategy="least-wait", interval=1000.0).past_grace()
    for name in ("one", "two"):
        bench.ready(name, capacity=4, seconds_per_image=1.0)
    given = [bench.submit(number) for number in range(8)]
    of_one, of_two = bench.works("one"), bench.works("two")
    assert sorted(of_one + of_two) == sorted(given)
    bench.beat("one", running=of_one[:2], queued=of_one[2:])
    bench.now += 1.0
    bench.beat("two", running=of_two[:2], queued=of_two[2:])
    bench.now += 1.0
    bench.beat("one", running=of_one)  # the images of the first two are being encoded
    for request_id in of_one[:2]:
        bench.result("one", request_id)
    bench.now += 0.5
    # The one has 1.5 s left and no more, the other 0.5 s and two that wait: its place is the first that is free.
    bench.submit(8)
    assert bench.works("one")[4:] == [rid(8)]
    bench.submit(9)
    bench.submit(10)
    assert len(bench.works("one")) == 6

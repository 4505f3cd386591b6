"""Memory limits and the best number of rows, measured by forwards."""

import itertools
import random

import pytest

from imagegen_worker.engines.continuous.limits import MAX_KEYS, MemoryLimits, RowCosts
from imagegen_worker.engines.continuous.scheduler import BatchScheduler
from imagegen_worker.engines.continuous.timing import WallTimer
from tests.unit.worker.continuous.models import ToyClock, ToyStage, finish, pipeline


def test_no_limit_is_known_at_first():
    assert MemoryLimits().allowed("k") is None


def test_a_limit_halves_until_it_fits():
    memory_limits = MemoryLimits()
    for rows, then in ((16, 8), (8, 4), (4, 2), (2, 1)):
        memory_limits.too_many("k", rows)
        assert memory_limits.allowed("k") == then
    assert memory_limits.allowed("other") is None


def test_a_failed_retry_restores_the_limit_and_delays_the_next_retry():
    memory_limits = MemoryLimits(retry_after=3)
    memory_limits.too_many("k", 16)
    trials = []
    forwards = 0
    while len(trials) < 4:
        forwards += 1
        if memory_limits.allowed("k") > 8:
            trials.append(forwards)
            memory_limits.too_many("k", memory_limits.allowed("k"))
            assert memory_limits.allowed("k") == 8
        else:
            memory_limits.fitted("k", 8)
    waits = [after - before for before, after in itertools.pairwise(trials)]
    assert waits == sorted(waits)
    assert waits[-1] >= 3 * waits[0]


def test_a_limit_rises_when_memory_is_free_again():
    memory_limits = MemoryLimits(retry_after=10)
    memory_limits.too_many("k", 16)
    for _ in range(100):
        memory_limits.fitted("k", memory_limits.allowed("k"))
    assert memory_limits.allowed("k") >= 16


def test_forwards_below_the_limit_do_not_count():
    memory_limits = MemoryLimits(retry_after=2)
    memory_limits.too_many("k", 16)
    for _ in range(100):
        memory_limits.fitted("k", 3)
    assert memory_limits.allowed("k") == 8


def test_a_size_that_fitted_once_may_fail_later():
    memory_limits = MemoryLimits()
    memory_limits.too_many("k", 16)
    memory_limits.fitted("k", 8)
    memory_limits.too_many("k", 8)
    assert memory_limits.allowed("k") == 4


def test_the_number_of_shapes_is_bounded():
    memory_limits, costs = MemoryLimits(), RowCosts()
    for key in range(2 * MAX_KEYS):
        memory_limits.too_many(key, 4)
        costs.observe(key, 4, 1.0)
    assert len(memory_limits._limits) == len(costs._costs) == MAX_KEYS


# ---- best number of rows -----------------------------------------------------------------------------------


def saturating_cost(saturation_point, noise=0.0, seed=0):
    """Return seconds per forward: constant up to `saturation_point` rows, proportional to the rows above."""
    rng = random.Random(seed)

    def cost(key, rows):
        return max(1.0, rows / saturation_point) * (1 + noise * rng.uniform(-1, 1))

    return cost


@pytest.mark.parametrize("saturation_point", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_rows_end_at_the_saturation_point(saturation_point, seed):
    costs, cost = RowCosts(gain=0.02), saturating_cost(saturation_point, noise=0.005, seed=seed)
    sizes = [1, 2, 4, 8, 16]
    for rows in sizes * 3:
        costs.observe("k", rows, cost("k", rows))
    chosen = []
    for _ in range(300):
        rows = costs.choose("k", sizes)
        costs.observe("k", rows, cost("k", rows))
        chosen.append(rows)
    assert chosen.count(saturation_point) >= 0.9 * len(chosen)
    assert 16 in chosen  # the largest size is tried again from time to time


@pytest.mark.parametrize("seed", range(5))
def test_one_slow_forward_makes_no_saturation_point(seed):
    costs, rng = RowCosts(), random.Random(seed)
    for _ in range(200):
        rows = rng.choice([1, 2, 4, 8])
        costs.observe("k", rows, 1.0 * (20 if rng.random() < 0.1 else 1) * (1 + 0.02 * rng.random()))
    assert costs.choose("k", [1, 2, 4, 8]) == 8


def test_unmeasured_sizes_count_as_faster():
    costs = RowCosts()
    for _ in range(5):
        costs.observe("k", 1, 1.0)
    assert costs.choose("k", [1, 2, 4]) == 4


def test_half_the_rows_are_tried_and_dropped_if_slower():
    costs, chosen = RowCosts(samples=3), []
    for _ in range(63):
        rows = costs.choose("k", [1, 2, 4, 8])
        costs.observe("k", rows, saturating_cost(8)("k", rows))
        chosen.append(rows)
    assert chosen.count(4) == 3
    assert chosen.count(8) == 60


def test_the_choice_follows_changed_costs():
    costs = RowCosts(probe_every=8)
    for rows in (1, 2, 4, 8):
        for _ in range(5):
            costs.observe("k", rows, saturating_cost(2)("k", rows))
    assert costs.saturation_point("k") == 2
    for _ in range(400):
        rows = costs.choose("k", [1, 2, 4, 8])
        costs.observe("k", rows, saturating_cost(8)("k", rows))
    assert costs.saturation_point("k") is None


def test_disturbed_measurements_have_no_lasting_effect():
    costs, chosen = RowCosts(samples=3), []
    for rows in (2, 4, 8):
        for _ in range(3):
            costs.observe("k", rows, saturating_cost(8)("k", rows) * (3 if rows == 8 else 1))  # disturbed
    assert costs.saturation_point("k") == 4
    for _ in range(64):
        rows = costs.choose("k", [2, 4, 6, 8])
        costs.observe("k", rows, saturating_cost(8)("k", rows))
        chosen.append(rows)
    assert chosen.count(8) > 32
    assert costs.saturation_point("k") is None


def test_a_single_call_above_the_saturation_point_runs():
    costs = RowCosts()
    for rows in (1, 2, 8):
        for _ in range(5):
            costs.observe("k", rows, saturating_cost(1)("k", rows))
    assert costs.choose("k", [2, 4]) == 2


def test_a_saturated_scheduler_serves_the_oldest_first_without_losing_throughput():
    clock = ToyClock(saturating_cost(4))
    stage = ToyStage(clock=clock)
    scheduler = BatchScheduler(timer=WallTimer(clock))
    for start in range(12):
        scheduler.start(pipeline(stage, start, 30), tag=start)
    ended_at = {}
    while scheduler.step():
        ended_at |= {task.tag: clock.now for task in scheduler.ended()}
    assert clock.now <= 12 * 30 / 4 * 1.05  # the maximum is 4 rows a second
    # 12 is halved: 6 rows are as fast, 3 are not.
    assert [rows for _, rows in stage.forwards].count(6) > 0.7 * len(stage.forwards)
    assert list(ended_at) == sorted(ended_at)
    # If all ran at once, all would end last; one after the other, the mean wait is much shorter.
    assert sum(ended_at.values()) / 12 < 0.8 * clock.now


def test_sizes_take_turns_by_measured_cost():
    costs = {"512": 1.0, "1024": 6.0}
    clock = ToyClock(lambda key, rows: costs[key])
    stage, scheduler = ToyStage(clock=clock), BatchScheduler(timer=WallTimer(clock))
    scheduler.start(pipeline(stage, 0, 20, key="1024"), tag="1024")
    for start in range(3):
        scheduler.start(pipeline(stage, start, 20, key="512"), tag=f"512 {start}")
    ended_at = {}
    while scheduler.step():
        ended_at |= {task.tag: clock.now for task in scheduler.ended()}
    # The small ones get three of four shares, so they end after about 20 / (3/4) seconds, before the large one.
    assert max(at for tag, at in ended_at.items() if tag != "1024") <= 20 / (3 / 4) + 12
    assert finish(scheduler) == {}

"""Each request gets the same share of the device, whatever its size."""

from imagegen_worker.engines.continuous.fairness import MAX_GROUPS, FairQueue


def run(turns, groups, costs, forwards):
    """Return the seconds of each group. `groups` maps to requests, `costs` to seconds per forward."""
    given = dict.fromkeys(groups, 0.0)
    for _ in range(forwards):
        key = turns.choose(groups)
        turns.charge(key, costs[key])
        given[key] += costs[key]
    return given


def test_small_and_large_get_the_same_time():
    given = run(FairQueue(), {"512": 1, "1024": 1}, {"512": 1.0, "1024": 5.0}, 600)
    assert abs(given["512"] - given["1024"]) <= 5.0


def test_time_is_by_requests():
    given = run(FairQueue(), {"512": 4, "1024": 1}, {"512": 1.0, "1024": 5.0}, 900)
    assert abs(given["512"] / given["1024"] - 4) < 0.1


def test_no_group_waits_longer_than_one_round_of_the_others():
    turns = FairQueue()
    costs = {"a": 1.0, "b": 1.0, "c": 20.0}
    since = dict.fromkeys(costs, 0)
    for _ in range(500):
        key = turns.choose(dict.fromkeys(costs, 1))
        turns.charge(key, costs[key])
        for other in since:
            since[other] = 0 if other == key else since[other] + 1
        assert since["a"] <= 3
        assert since["c"] <= 45


def test_a_returning_group_gets_no_compensation_for_unused_time():
    turns = FairQueue()
    run(turns, {"a": 1, "b": 1}, {"a": 1.0, "b": 1.0}, 10)
    run(turns, {"a": 1}, {"a": 1.0}, 1000)
    given = run(turns, {"a": 1, "b": 1}, {"a": 1.0, "b": 1.0}, 100)
    assert abs(given["a"] - given["b"]) <= 2


def test_a_new_group_does_not_wait_for_the_past_use_of_others():
    turns = FairQueue()
    run(turns, {"a": 1}, {"a": 1.0}, 1000)
    given = run(turns, {"a": 1, "new": 1}, {"a": 1.0, "new": 1.0}, 10)
    assert given["new"] >= 4


def test_groups_that_do_not_wait_are_forgotten():
    turns = FairQueue()
    for number in range(3 * MAX_GROUPS):
        groups = {number: 1, number + 1: 1}
        key = turns.choose(groups)
        turns.charge(key, 1.0)
    assert len(turns._virtual) <= MAX_GROUPS + 2

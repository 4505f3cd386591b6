"""The water-filling plan against handing out one request at a time."""

from hypothesis import given
from hypothesis import strategies as st

from imagegen_broker.scheduling.strategies.least_wait import Load, distribute

loads = st.lists(
    st.builds(
        Load,
        depth=st.integers(0, 20),
        seconds=st.sampled_from([0.05, 0.1, 0.125, 0.25, 0.5, 1.0, 2.5]),
        before=st.sampled_from([0.0, 0.0, 0.7, 10.0]),
    ),
    min_size=1,
    max_size=8,
)


def greedy(backlog, workers):
    """Each request to the worker that would finish it first."""
    counts = [0] * len(workers)
    for _ in range(backlog):
        finishes = [load.finish(count + 1) for load, count in zip(workers, counts, strict=True)]
        counts[finishes.index(min(finishes))] += 1
    return counts


def makespan(workers, counts):
    ends = [
        load.before + (load.depth + count) * load.seconds
        for load, count in zip(workers, counts, strict=True)
        if count
    ]
    return max(ends, default=0.0)


@given(st.integers(0, 200), loads)
def test_the_plan_hands_out_everything_and_ends_as_soon_as_the_greedy_one(backlog, workers):
    plan = distribute(backlog, workers)
    assert sum(plan) == backlog
    assert min(plan) >= 0
    best = makespan(workers, greedy(backlog, workers))
    assert makespan(workers, plan) <= best + 1e-9


@given(st.integers(1, 200), loads)
def test_nobody_could_finish_its_last_request_sooner(backlog, workers):
    plan = distribute(backlog, workers)
    for load, count in zip(workers, plan, strict=True):
        if count:
            mine = load.before + (load.depth + count) * load.seconds
            others = [
                other.before + (other.depth + other_count + 1) * other.seconds
                for other, other_count in zip(workers, plan, strict=True)
            ]
            assert mine <= min(others) + 1e-9


def test_a_slow_worker_gets_nothing_that_a_fast_one_finishes_sooner():
    fast, slow = Load(depth=4, seconds=0.1), Load(depth=0, seconds=1.0)
    assert distribute(5, [fast, slow]) == [5, 0]
    assert distribute(7, [fast, slow]) == [6, 1]


def test_a_cold_worker_gets_nothing_until_loading_is_quicker_than_waiting():
    warm, cold = Load(depth=0, seconds=1.0), Load(depth=0, seconds=1.0, before=10.0)
    assert distribute(10, [warm, cold]) == [10, 0]
    assert distribute(14, [warm, cold]) == [12, 2]


def test_no_workers_no_plan():
    assert distribute(5, []) == []

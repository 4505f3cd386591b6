"""The scaling of workers on a Ray cluster."""

import pytest

from deploy.ray.scaling import Policy, Scaler, backlog_seconds, queue_depths, select_to_drain
from tests.statistics import statistics_of

POLICY = Policy(least=1, most=4, work_off=10.0, shrink_after=60.0)


@pytest.mark.parametrize(
    ("backlog", "workers"), [(0.0, 1), (10.0, 1), (10.1, 2), (35.0, 4), (1000.0, 4)], ids=lambda value: str(value)
)
def test_the_number_of_workers_finishes_a_backlog_in_time_within_the_limits(backlog, workers):
    assert POLICY.workers_for(backlog) == workers


def test_no_worker_remains_without_backlog_and_minimum():
    assert Policy(least=0, most=4, work_off=10.0, shrink_after=60.0).workers_for(0.0) == 0


def test_the_target_grows_at_once_and_shrinks_late():
    scaler = Scaler(POLICY)
    assert scaler.target(0.0, now=0.0) == 1
    assert scaler.target(40.0, now=1.0) == 4
    assert scaler.target(15.0, now=30.0) == 4
    assert scaler.target(0.0, now=61.0) == 4
    assert scaler.target(0.0, now=61.1) == 2, "the demand at 30 s still counts"
    assert scaler.target(0.0, now=90.1) == 1


def test_the_target_stays_while_the_backlog_is_unknown():
    scaler = Scaler(POLICY)
    assert scaler.target(None, now=0.0) == 1
    assert scaler.target(25.0, now=1.0) == 3
    assert scaler.target(None, now=100.0) == 3


def test_the_history_of_demands_is_limited():
    scaler = Scaler(POLICY)
    for now in range(1000):
        scaler.target(float(now % 40), now=float(now))
    assert len(scaler._demands) <= POLICY.most


def test_backlogs_are_summed_by_model():
    rows = [{"model": "a", "backlog_seconds": 3.0}, {"model": "b", "backlog_seconds": 4.5}]
    statistics = statistics_of(per_model_stats=rows)
    assert backlog_seconds(statistics, None) == 7.5
    assert backlog_seconds(statistics, "b") == 4.5
    assert backlog_seconds(statistics, "c") == 0.0


def test_queue_depths_by_worker_name():
    assert queue_depths(statistics_of(per_gpu_stats=[{"worker": "a", "current_queue_depth": 3}])) == {"a": 3}


def test_workers_without_gpu_are_drained_first_then_the_least_busy():
    depth = {"busy": 5, "waiting": None, "idle": 0}
    assert select_to_drain(list(depth), 2, depth) == ["waiting", "idle"]
    assert select_to_drain(list(depth), 0, depth) == []

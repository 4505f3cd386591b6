"""How many workers a Ray cluster is asked for."""

import pytest

from deploy.ray.scaling import Policy, Scaler, backlog_seconds, first_to_go, queue_depths
from tests.statistics import statistics_of

POLICY = Policy(least=1, most=4, work_off=10.0, shrink_after=60.0)


@pytest.mark.parametrize(
    ("backlog", "wanted"), [(0.0, 1), (10.0, 1), (10.1, 2), (35.0, 4), (1000.0, 4)], ids=lambda value: str(value)
)
def test_a_backlog_is_worked_off_in_time_within_the_bounds(backlog, wanted):
    assert POLICY.wanted(backlog) == wanted


def test_none_are_kept_for_nothing():
    assert Policy(least=0, most=4, work_off=10.0, shrink_after=60.0).wanted(0.0) == 0


def test_it_grows_at_once_and_shrinks_late():
    scaler = Scaler(POLICY)
    assert scaler.target(0.0, now=0.0) == 1
    assert scaler.target(40.0, now=1.0) == 4
    assert scaler.target(15.0, now=30.0) == 4
    assert scaler.target(0.0, now=61.0) == 4
    assert scaler.target(0.0, now=61.1) == 2, "what was wanted at 30 s still counts"
    assert scaler.target(0.0, now=90.1) == 1


def test_without_news_it_stays():
    scaler = Scaler(POLICY)
    assert scaler.target(None, now=0.0) == 1
    assert scaler.target(25.0, now=1.0) == 3
    assert scaler.target(None, now=100.0) == 3


def test_it_keeps_no_history_beyond_need():
    scaler = Scaler(POLICY)
    for now in range(1000):
        scaler.target(float(now % 40), now=float(now))
    assert len(scaler._wanted) <= POLICY.most


def test_backlogs_are_read_by_model():
    rows = [{"model": "a", "backlog_seconds": 3.0}, {"model": "b", "backlog_seconds": 4.5}]
    statistics = statistics_of(per_model_stats=rows)
    assert backlog_seconds(statistics, None) == 7.5
    assert backlog_seconds(statistics, "b") == 4.5
    assert backlog_seconds(statistics, "c") == 0.0


def test_depths_go_by_name():
    assert queue_depths(statistics_of(per_gpu_stats=[{"worker": "a", "current_queue_depth": 3}])) == {"a": 3}


def test_who_waits_for_a_gpu_goes_first_then_who_has_least():
    depth = {"busy": 5, "waiting": None, "idle": 0}
    assert first_to_go(list(depth), 2, depth) == ["waiting", "idle"]
    assert first_to_go(list(depth), 0, depth) == []

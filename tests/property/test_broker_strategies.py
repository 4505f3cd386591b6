"""The predicted finish times against a simulation of every forward."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from imagegen_broker.scheduling.finish_times import AGEING, MAX_EXACT, DeviceCost, Job, finish_times, progress

GROUPS = {name: (fixed, image) for name, fixed, image in [("a", 0.5, 1.0), ("b", 2.0, 0.25), ("c", 0.0, 3.0)]}
MAX_IMAGES = 4


def job(name, images, forwards, left, *, is_running):
    return Job(DeviceCost(name, images, forwards, *GROUPS[name]), min(left, forwards), is_running)


@st.composite
def workers(draw):
    """Jobs in the order of arrival; those that run fit into a batch."""
    jobs, images = [], 0
    for _ in range(draw(st.integers(1, 10))):
        size, forwards = draw(st.integers(1, 3)), draw(st.integers(1, 12))
        fits = images + size <= MAX_IMAGES and draw(st.booleans())
        images += size if fits else 0
        left = draw(st.integers(1, forwards)) if fits else forwards
        jobs.append(job(draw(st.sampled_from(sorted(GROUPS))), size, forwards, left, is_running=fits))
    return jobs


def forward(name, images):
    fixed, image = GROUPS[name]
    return fixed * max(1, -(-images // MAX_IMAGES)) + image * images


def forward_by_forward(jobs):
    """Continuous batching: the group that ends a job soonest, per image and with ageing, runs until it does."""
    left = {index: each.left for index, each in enumerate(jobs)}
    running = {index: 0.0 for index, each in enumerate(jobs) if each.is_running}
    waiting = [index for index, each in enumerate(jobs) if not each.is_running]
    now, ends = 0.0, {}
    while running or waiting:
        while waiting:
            images = sum(jobs[index].cost.images for index in (*running, waiting[0]))
            if running and images > MAX_IMAGES:
                break
            running[waiting.pop(0)] = now
        groups = {}
        for index in running:
            groups.setdefault(jobs[index].cost.group, []).append(index)

        def seconds(name, groups=groups):
            return forward(name, sum(jobs[index].cost.images for index in groups[name]))

        def turn(name, groups=groups, running=running, now=now, seconds=seconds):
            members = groups[name]
            images = sum(jobs[index].cost.images for index in members)
            age = now - min(running[index] for index in members)
            return min(left[index] for index in members) * seconds(name) / images - AGEING * age

        first, *others = sorted(map(turn, groups))
        assume(not others or others[0] - first > 1e-9)  # whichever of two equal groups runs first
        name = min(groups, key=turn)
        for _ in range(min(left[index] for index in groups[name])):
            now += seconds(name)
            for index in groups[name]:
                left[index] -= 1
        for index in [index for index in groups[name] if not left[index]]:
            ends[index] = now
            del running[index]
    return [ends[index] for index in range(len(jobs))]


@given(workers())
def test_the_prediction_agrees_with_a_simulation_forward_by_forward(jobs):
    assert finish_times(jobs, MAX_IMAGES, is_continuous=True) == pytest.approx(forward_by_forward(jobs))


@given(workers(), st.floats(0.01, 20.0))
def test_progress_and_what_is_left_make_up_the_whole(jobs, seconds):
    running = [each for each in jobs if each.is_running]
    ends = finish_times(running, MAX_IMAGES, is_continuous=True)
    left = progress(running, MAX_IMAGES, seconds)
    for each, end, remaining in zip(running, ends, left, strict=True):
        assert remaining <= each.left
        if end < seconds:
            assert remaining <= 0.0
    if running and seconds > max(ends):
        assert max(left) < 0.0, "all are overdue"


@given(workers(), st.booleans())
def test_one_more_job_never_ends_before_it_could_alone(jobs, is_continuous):
    new = job("b", 1, 5, 5, is_running=False)
    ends = finish_times([*jobs, new], MAX_IMAGES, is_continuous=is_continuous)
    assert ends[-1] >= new.cost.alone_seconds * (1 - 1e-9)
    assert all(end > 0 for end in ends)


def test_a_static_batch_runs_to_its_end_before_the_next_one_starts():
    jobs = [job("a", 1, 2, 2, is_running=True), job("b", 1, 2, 2, is_running=False)]
    jobs += [job("a", 1, 2, 2, is_running=False), job("b", 1, 2, 2, is_running=False)]
    # a runs alone for 3 s, both b together for 2 · (2 + 2 · 0.25) = 5 s, the second a for 3 s.
    assert finish_times(jobs, MAX_IMAGES, is_continuous=False) == pytest.approx([3.0, 8.0, 11.0, 8.0])


def test_many_jobs_are_predicted_in_linear_time():
    jobs = [job("a", 1, 10, 10, is_running=False)] * (MAX_EXACT + 1)
    ends = finish_times(jobs, MAX_IMAGES, is_continuous=True)
    assert ends == sorted(ends)
    assert ends[-1] == pytest.approx(len(jobs) * 10 * (0.5 / MAX_IMAGES + 1.0))


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1e9])
def test_extreme_costs_give_finite_times(seconds):
    cost = DeviceCost("x", 16, 1000.0, seconds, max(seconds, 1e-9))
    jobs = [Job(cost, 1000.0, is_running=False), Job(cost, 1e-300, is_running=True)]
    assert all(0 <= end < float("inf") for end in finish_times(jobs, 1, is_continuous=True))

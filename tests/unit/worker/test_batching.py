"""Which jobs form a batch, and when it is due."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagegen_worker.core.batching import BatchFormer
from imagegen_worker.core.events import Job
from tests.unit.worker.bench import resolved


def job(number, *, arrived=0.0, images=1, width=64):
    return Job(number, resolved(seeds=tuple(range(images)), width=width), arrived)


def numbers(batch):
    return [job.number for job in batch]


@pytest.mark.parametrize(
    ("jobs", "now", "batch", "next_at"),
    [
        pytest.param([], 0.0, [], None, id="no jobs"),
        pytest.param([job(1)], 0.9, [], 1.0, id="a single job waits for others"),
        pytest.param([job(1)], 1.0, [1], None, id="a single job is due after the maximum wait"),
        pytest.param([job(1), job(2), job(3)], 0.0, [], 1.0, id="an incomplete batch waits"),
        pytest.param([job(1), job(2), job(3), job(4)], 0.0, [1, 2, 3, 4], None, id="a full batch is due at once"),
        pytest.param([job(n) for n in range(1, 6)], 0.0, [1, 2, 3, 4], 1.0, id="the fifth job stays queued"),
        pytest.param(
            [job(1), job(2, width=32)], 1.0, [1], 1.0, id="jobs with different keys are separate batches"
        ),
        pytest.param(
            [job(1, width=32), job(2), job(3, width=32)], 1.0, [1, 3], 1.0, id="jobs with equal keys are one batch"
        ),
        pytest.param([job(1, images=9)], 0.0, [1], None, id="a job above the maximum is due at once, alone"),
        pytest.param([job(1, images=3), job(2, images=2)], 0.0, [1], 1.0, id="two jobs that do not fit together"),
        pytest.param(
            [job(1, images=3), job(2, images=2), job(3)],
            0.0,
            [1, 3],
            1.0,
            id="a smaller job passes one that does not fit",
        ),
        pytest.param([job(1), job(2, images=4)], 0.0, [1], float("-inf"), id="the next job is a full batch"),
        pytest.param(
            [job(1), *[job(n, width=32) for n in (2, 3, 4, 5)]],
            0.5,
            [2, 3, 4, 5],
            1.0,
            id="a full batch precedes an older incomplete one",
        ),
        pytest.param(
            [job(1), *[job(n, width=32) for n in (2, 3, 4, 5)]],
            1.0,
            [1],
            float("-inf"),
            id="an overdue job precedes a full batch",
        ),
    ],
)
def test_the_next_batch_and_its_deadline(jobs, now, batch, next_at):
    former = BatchFormer(max_images=4, max_wait=1.0)
    for queued in jobs:
        former.add(queued)
    assert numbers(former.take(now)) == batch
    assert former.next_deadline() == next_at


@pytest.mark.parametrize(
    "other",
    [
        {"model": "n"},
        {"width": 32},
        {"height": 32},
        {"num_inference_steps": 5},
        {"guidance_scale": None},
        {"negative_prompt": ""},
    ],
)
def test_parameters_that_must_be_equal_within_a_batch(other):
    assert resolved().batch_key != resolved(**other).batch_key


@pytest.mark.parametrize("other", [{"prompt": "q"}, {"seeds": (7, 8)}])
def test_parameters_that_may_differ_within_a_batch(other):
    assert resolved().batch_key == resolved(**other).batch_key


def test_a_job_that_smaller_ones_passed_is_first_in_the_next_batch():
    former = BatchFormer(max_images=4, max_wait=1.0)
    for queued in (job(1, images=3), job(2, images=4), *[job(number) for number in range(3, 9)]):
        former.add(queued)
    assert [numbers(former.take(0.0)) for _ in range(3)] == [[1, 3], [2], [4, 5, 6, 7]]


def test_without_batching_each_job_is_a_batch_of_its_own_at_once():
    former = BatchFormer(max_images=1, max_wait=0.0)
    former.add(job(1, arrived=5.0))
    former.add(job(2, arrived=5.0))
    assert numbers(former.take(5.0)) == [1]
    assert numbers(former.take(5.0)) == [2]


def test_a_removed_job_is_not_taken():
    former = BatchFormer(max_images=4, max_wait=1.0)
    former.add(job(1))
    former.add(job(2))
    assert former.remove(1)
    assert not former.remove(1)
    assert len(former) == 1
    assert numbers(former.take(1.0)) == [2]


arrivals = st.lists(
    st.tuples(st.floats(0.0, 1.0), st.integers(1, 6), st.sampled_from([32, 64]), st.floats(0.0, 1.5)), max_size=30
)


@given(arrivals, st.integers(1, 8), st.floats(0.0, 2.0))
def test_batches_have_equal_keys_and_bounded_size_and_no_job_starves(arrivals, max_images, max_wait):
    """Jobs arrive at random times; the device is busy for some time after each batch."""
    former = BatchFormer(max_images, max_wait)
    now, taken, waiting = 0.0, [], {}

    def take(busy):
        nonlocal now
        batch = former.take(now)
        if not batch:
            return False
        assert len({queued.request.batch_key for queued in batch}) == 1
        assert numbers(batch) == sorted(numbers(batch))
        assert len(batch) == 1 or sum(len(queued.request.seeds) for queued in batch) <= max_images
        overdue = [queued.number for queued in waiting.values() if queued.arrived + max_wait <= now]
        assert not overdue or min(overdue) <= batch[0].number, "the oldest overdue job is in the batch"
        taken.extend(numbers(batch))
        for queued in batch:
            del waiting[queued.number]
        now += busy
        return True

    for number, (pause, images, width, busy) in enumerate(arrivals):
        now += pause
        waiting[number] = job(number, arrived=now, images=images, width=width)
        former.add(waiting[number])
        take(busy)
    while (deadline := former.next_deadline()) is not None:
        now = max(now, deadline)
        assert take(0.0), "a batch is due at its deadline"
    assert sorted(taken) == list(range(len(arrivals)))
    assert len(former) == 0

"""Which jobs share a batch, and when it goes."""

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
        pytest.param([], 0.0, [], None, id="nothing waits"),
        pytest.param([job(1)], 0.9, [], 1.0, id="one waits for company"),
        pytest.param([job(1)], 1.0, [1], None, id="one has waited long enough"),
        pytest.param([job(1), job(2), job(3)], 0.0, [], 1.0, id="three of four wait"),
        pytest.param([job(1), job(2), job(3), job(4)], 0.0, [1, 2, 3, 4], None, id="a full batch goes at once"),
        pytest.param([job(n) for n in range(1, 6)], 0.0, [1, 2, 3, 4], 1.0, id="the fifth stays behind"),
        pytest.param([job(1), job(2, width=32)], 1.0, [1], 1.0, id="unlike jobs go apart"),
        pytest.param([job(1, width=32), job(2), job(3, width=32)], 1.0, [1, 3], 1.0, id="like jobs go together"),
        pytest.param([job(1, images=9)], 0.0, [1], None, id="more images than a call takes: at once and alone"),
        pytest.param([job(1, images=3), job(2, images=2)], 0.0, [1], 1.0, id="two that do not fit together"),
        pytest.param(
            [job(1, images=3), job(2, images=2), job(3)], 0.0, [1, 3], 1.0, id="a smaller one behind it does"
        ),
        pytest.param([job(1), job(2, images=4)], 0.0, [1], float("-inf"), id="the next is full by itself"),
        pytest.param(
            [job(1), *[job(n, width=32) for n in (2, 3, 4, 5)]], 0.5, [2, 3, 4, 5], 1.0, id="full before ripe"
        ),
        pytest.param(
            [job(1), *[job(n, width=32) for n in (2, 3, 4, 5)]], 1.0, [1], float("-inf"), id="oldest before full"
        ),
    ],
)
def test_what_goes(jobs, now, batch, next_at):
    former = BatchFormer(max_images=4, max_wait=1.0)
    for one in jobs:
        former.add(one)
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
def test_what_makes_requests_unlike(other):
    assert resolved().batch_key != resolved(**other).batch_key


@pytest.mark.parametrize("other", [{"prompt": "q"}, {"seeds": (7, 8)}])
def test_what_does_not(other):
    assert resolved().batch_key == resolved(**other).batch_key


def test_whoever_is_passed_is_first_of_the_next_batch():
    former = BatchFormer(max_images=4, max_wait=1.0)
    for one in (job(1, images=3), job(2, images=4), *[job(number) for number in range(3, 9)]):
        former.add(one)
    assert [numbers(former.take(0.0)) for _ in range(3)] == [[1, 3], [2], [4, 5, 6, 7]]


def test_without_batching_each_goes_alone_and_at_once():
    former = BatchFormer(max_images=1, max_wait=0.0)
    former.add(job(1, arrived=5.0))
    former.add(job(2, arrived=5.0))
    assert numbers(former.take(5.0)) == [1]
    assert numbers(former.take(5.0)) == [2]


def test_a_removed_job_is_gone():
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
def test_batches_are_alike_in_order_within_size_and_nothing_starves(arrivals, max_images, max_wait):
    """Jobs arrive with pauses, the device is busy for a while after each batch."""
    former = BatchFormer(max_images, max_wait)
    now, gone, waiting = 0.0, [], {}

    def take(busy):
        nonlocal now
        batch = former.take(now)
        if not batch:
            return False
        assert len({one.request.batch_key for one in batch}) == 1
        assert numbers(batch) == sorted(numbers(batch))
        assert len(batch) == 1 or sum(len(one.request.seeds) for one in batch) <= max_images
        ripe = [one.number for one in waiting.values() if one.arrived + max_wait <= now]
        assert not ripe or min(ripe) <= batch[0].number, "the longest wait goes first"
        gone.extend(numbers(batch))
        for one in batch:
            del waiting[one.number]
        now += busy
        return True

    for number, (pause, images, width, busy) in enumerate(arrivals):
        now += pause
        waiting[number] = job(number, arrived=now, images=images, width=width)
        former.add(waiting[number])
        take(busy)
    while (deadline := former.next_deadline()) is not None:
        now = max(now, deadline)
        assert take(0.0), "at its deadline a batch goes"
    assert sorted(gone) == list(range(len(arrivals)))
    assert len(former) == 0

"""Limits on unfinished jobs, and the turns of jobs with input images."""

from hypothesis import given
from hypothesis import strategies as st

from imagegen_gateway.core.job_limits import InputQueue, JobQuota


def test_jobs_and_bytes_of_each_key_are_limited():
    quota = JobQuota(max_jobs=4, max_jobs_per_key=2, max_bytes_per_key=10)
    quota.add("a", 10)
    assert quota.find_excess("a", 1) == "key_bytes"
    assert quota.find_excess("a", 0) is None
    quota.add("a", 0)
    assert quota.find_excess("a", 0) == "key_jobs"
    assert quota.find_excess("b", 10) is None
    quota.add("b", 0)
    quota.add("c", 0)
    assert quota.find_excess("d", 0) == "jobs"
    quota.remove("a", 10)
    assert quota.find_excess("a", 10) is None
    for key in "abc":
        quota.remove(key, 0)
    assert (quota.jobs, len(quota._jobs), len(quota._bytes)) == (0, 0, 0)


def test_jobs_wait_until_there_is_memory_for_their_images():
    queue = InputQueue(per_key=10, total=100)
    for job in ("1", "2", "3"):
        queue.enter(job, "a", 5)
    assert queue.admit() == ["1", "2"]
    assert queue.admit() == []
    queue.leave("1", "a")
    assert queue.admit() == ["3"]


def test_keys_take_turns():
    queue = InputQueue(per_key=10, total=10)
    queue.enter("a1", "a", 10)
    assert queue.admit() == ["a1"]
    for job, key in (("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c")):
        queue.enter(job, key, 10)
    order = []
    last = ("a1", "a")
    for _ in range(4):
        queue.leave(*last)
        [job] = queue.admit()
        order.append(job)
        last = (job, job[0])
    assert order == ["a2", "b1", "c1", "a3"]


def test_a_large_job_is_not_overtaken_for_ever():
    queue = InputQueue(per_key=10, total=10)
    queue.enter("small", "a", 4)
    assert queue.admit() == ["small"]
    queue.enter("large", "b", 10)
    queue.enter("later", "c", 4)
    assert queue.admit() == []
    queue.leave("small", "a")
    assert queue.admit() == ["large"]


def test_a_job_larger_than_the_maximum_of_a_key_runs_alone():
    queue = InputQueue(per_key=10, total=20)
    queue.enter("huge", "a", 1000)
    queue.enter("next", "a", 1)
    assert queue.admit() == ["huge"]
    queue.leave("huge", "a")
    assert queue.admit() == ["next"]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.booleans()), max_size=60))
def test_every_job_has_its_turn_and_memory_stays_within_the_limits(jobs):
    queue = InputQueue(per_key=10, total=15)
    running, waiting, sizes = [], set(), {}
    for number, (key, size, leaves) in enumerate(jobs):
        job = (f"{key}{number}", key)
        sizes[job[0]] = min(size, 10)
        queue.enter(*job, size)
        waiting.add(job)
        if leaves and running:
            queue.leave(*running.pop(0))
        elif leaves:
            waiting.remove(job)
            queue.leave(*job)
        running += [(name, name[0]) for name in queue.admit()]
        waiting -= set(running)
        assert sum(sizes[name] for name, _ in running) <= 15
        assert all(sum(sizes[name] for name, owner in running if owner == key) <= 10 for key in "abc")
    while running:
        queue.leave(*running.pop(0))
        running += [(name, name[0]) for name in queue.admit()]
        waiting -= set(running)
    assert not waiting
    assert (queue._budget.held, len(queue._waiting), len(queue._held)) == (0, 0, 0)

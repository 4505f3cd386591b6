"""The states of a request with real processes: queue position, order, progress, deadline."""

import asyncio

import pytest
from msgspec.structs import asdict

from imagegen_client import AsyncClient, Client, DeadlineExceededError
from tests.e2e.conftest import SIMULATED, start_simulated

ONE_AT_A_TIME = ("--max-batch-size", "1", "--capacity", "1")
SLOW = ("--backend", "simulated", "--simulated-batch-seconds", "3600", "--simulated-image-seconds", "0")


def held(client):
    """Return the number of requests at the broker by state."""
    return asdict(client.stats().requests)


@pytest.fixture
def blocked(fleet, client):
    """A client of a fleet whose only worker is busy with one request for an hour and accepts no other."""
    start_simulated(fleet, client, "slow", options=(*SLOW, *ONE_AT_A_TIME))
    client.submit("for an hour", seed=1)
    fleet.wait_until(lambda: held(client)["dispatched"] == 1, "a busy worker")
    return client


def start_quick(fleet):
    fleet.start_worker("quick", *SIMULATED, *ONE_AT_A_TIME)


def by_iterator(fleet, react):
    with Client(fleet.frontend) as client:
        job = client.submit("follow me", seed=3, progress=True, num_inference_steps=4)
        for event in job.progress():
            react(event)
            assert job.latest is not None
        return job.result(60)


def by_callback(fleet, react):
    with Client(fleet.frontend) as client:
        return client.generate("follow me", seed=3, on_progress=react, num_inference_steps=4)


def by_async_iterator(fleet, react):
    async def follow():
        async with AsyncClient(fleet.frontend) as client:
            job = client.submit("follow me", seed=3, progress=True, num_inference_steps=4)
            async for event in job.progress():
                react(event)
            assert job.latest.step == 4
            return await job.result()

    return asyncio.run(follow())


@pytest.mark.parametrize("follow", [by_iterator, by_callback, by_async_iterator])
def test_progress_reports_queue_positions_estimates_and_steps(fleet, blocked, follow):
    before = blocked.submit("in front", seed=2)
    fleet.wait_until(lambda: held(blocked)["queued"] == 1, "a queue")
    events = []

    def react(event):
        """Cause the next event on each queue position, so that the test waits for no clock."""
        events.append(event)
        if event.place == 1:
            before.cancel()
        elif event.place == 0 and "quick" not in fleet.processes:
            start_quick(fleet)

    assert follow(fleet, react).worker == "quick"
    waited = [event for event in events if event.state == "queued"]
    assert events[: len(waited)] == waited, "no queue position follows after the start"
    assert [event.place for event in waited[:2]] == [1, 0]
    assert [event.seconds_to_start for event in waited[:2]] == [7200, 3600], "an hour for each request ahead"
    assert [(event.step, event.steps) for event in events[len(waited) :]] == [(step, 4) for step in range(5)]


def test_requests_are_ordered_by_priority_and_clients_take_turns(fleet, blocked):
    order = []

    def submit(client, name, priority=0):
        queued = held(blocked)["queued"]
        job = client.submit(name, seed=5, priority=priority)
        job.add_done_callback(lambda job: order.append(name))
        fleet.wait_until(lambda: held(blocked)["queued"] == queued + 1, "one more in the queue")
        return job

    with Client(fleet.frontend) as other:
        jobs = [
            submit(blocked, "patient", priority=-1),
            submit(blocked, "first"),
            submit(blocked, "second"),
            submit(other, "of another client"),
            submit(blocked, "urgent", priority=5),
        ]
        start_quick(fleet)
        assert {job.result(60).worker for job in jobs} == {"quick"}
    assert order == ["urgent", "first", "of another client", "second", "patient"]


def test_deadlines_end_requests_that_run_wait_at_the_worker_or_wait_at_the_broker(fleet, client):
    start_simulated(fleet, client, "slow", options=(*SLOW, "--max-batch-size", "1", "--capacity", "2"))
    jobs = [client.submit("late", seed=n, timeout_seconds=3.0 - n / 2, progress=True) for n in range(3)]
    for job in reversed(jobs):
        with pytest.raises(DeadlineExceededError):
            job.result(60)
    running, at_the_worker, here = [{event.state for event in job.progress()} for job in jobs]
    assert "running" in running
    assert "running" not in at_the_worker
    assert here == {"queued"}
    fleet.wait_until(lambda: not any(held(client).values()), "an empty broker")
    (worker,) = client.stats()["per_gpu_stats"]
    fleet.wait_until(lambda: client.stats()["per_gpu_stats"][0]["current_queue_depth"] == 0, "an idle worker")
    assert worker["total_requests"] == 0

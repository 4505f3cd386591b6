"""A request's life with real processes: its place in the queue, its turn, its deadline."""

import asyncio

import pytest
from msgspec.structs import asdict

from imagegen_client import AsyncClient, Client, DeadlineExceededError
from tests.e2e.conftest import SIMULATED, start_simulated

ONE_AT_A_TIME = ("--max-batch-size", "1", "--capacity", "1")
SLOW = ("--backend", "simulated", "--simulated-batch-seconds", "3600", "--simulated-image-seconds", "0")


def held(client):
    """Requests at the broker, by state."""
    return asdict(client.stats().requests)


@pytest.fixture
def blocked(fleet, client):
    """A client of a fleet whose only worker takes one request at a time, and has one for an hour."""
    start_simulated(fleet, client, "slow", options=(*SLOW, *ONE_AT_A_TIME))
    client.submit("for an hour", seed=1)
    fleet.wait_until(lambda: held(client)["dispatched"] == 1, "a busy worker")
    return client


def start_quick(fleet):
    fleet.start_worker("quick", *SIMULATED, *ONE_AT_A_TIME)


def by_iterator(fleet, react):
    with Client(fleet.frontend) as client:
        job = client.submit("follow me", seed=3, progress=True, num_inference_steps=4)
        for sign in job.progress():
            react(sign)
            assert job.latest is not None
        return job.result(60)


def by_callback(fleet, react):
    with Client(fleet.frontend) as client:
        return client.generate("follow me", seed=3, on_progress=react, num_inference_steps=4)


def by_async_iterator(fleet, react):
    async def follow():
        async with AsyncClient(fleet.frontend) as client:
            job = client.submit("follow me", seed=3, progress=True, num_inference_steps=4)
            async for sign in job.progress():
                react(sign)
            assert job.latest.step == 4
            return await job.result()

    return asyncio.run(follow())


@pytest.mark.parametrize("follow", [by_iterator, by_callback, by_async_iterator])
def test_who_follows_a_request_learns_its_place_and_time_then_its_steps(fleet, blocked, follow):
    before = blocked.submit("in front", seed=2)
    fleet.wait_until(lambda: held(blocked)["queued"] == 1, "a queue")
    signs = []

    def react(sign):
        """Each place brings about the next: the test waits for no clock."""
        signs.append(sign)
        if sign.place == 1:
            before.cancel()
        elif sign.place == 0 and "quick" not in fleet.processes:
            start_quick(fleet)

    assert follow(fleet, react).worker == "quick"
    waited = [sign for sign in signs if sign.state == "queued"]
    assert signs[: len(waited)] == waited, "what runs waits no more"
    assert [sign.place for sign in waited[:2]] == [1, 0]
    assert [sign.seconds_to_start for sign in waited[:2]] == [7200, 3600], "an hour for each that goes before it"
    assert [(sign.step, sign.steps) for sign in signs[len(waited) :]] == [(step, 4) for step in range(5)]


def test_the_urgent_go_first_and_clients_take_turns(fleet, blocked):
    order = []

    def ask(client, name, priority=0):
        queued = held(blocked)["queued"]
        job = client.submit(name, seed=5, priority=priority)
        job.add_done_callback(lambda job: order.append(name))
        fleet.wait_until(lambda: held(blocked)["queued"] == queued + 1, "one more in the queue")
        return job

    with Client(fleet.frontend) as other:
        jobs = [
            ask(blocked, "patient", priority=-1),
            ask(blocked, "first"),
            ask(blocked, "second"),
            ask(other, "of another client"),
            ask(blocked, "urgent", priority=5),
        ]
        start_quick(fleet)
        assert {job.result(60).worker for job in jobs} == {"quick"}
    assert order == ["urgent", "first", "of another client", "second", "patient"]


def test_deadlines_end_what_runs_what_waits_at_the_worker_and_what_waits_here(fleet, client):
    start_simulated(fleet, client, "slow", options=(*SLOW, "--max-batch-size", "1", "--capacity", "2"))
    jobs = [client.submit("late", seed=n, timeout_seconds=3.0 - n / 2, progress=True) for n in range(3)]
    for job in reversed(jobs):
        with pytest.raises(DeadlineExceededError):
            job.result(60)
    running, at_the_worker, here = [{sign.state for sign in job.progress()} for job in jobs]
    assert "running" in running
    assert "running" not in at_the_worker
    assert here == {"queued"}
    fleet.wait_until(lambda: not any(held(client).values()), "an empty broker")
    (worker,) = client.stats()["per_gpu_stats"]
    fleet.wait_until(lambda: client.stats()["per_gpu_stats"][0]["current_queue_depth"] == 0, "an idle worker")
    assert worker["total_requests"] == 0

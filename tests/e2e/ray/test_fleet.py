"""A real Ray of several nodes, fake GPUs, simulated workers: what grows, shrinks and dies loses no request."""

import os
import signal

import psutil
import pytest

from tests.e2e.conftest import program
from tools.chaos import SIDE, is_right

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

WORKER = ("--backend", "simulated", "--simulated-batch-seconds", "0.3", "--simulated-image-seconds", "0.05")
QUICK = ("--work-off", "2", "--look-every", "0.3", "--shrink-after", "3")


@pytest.fixture
def start(fleet, client, start_manager):
    """Start the manager for the fleet's broker."""

    def start(*arguments, worker=WORKER):
        broker = fleet.brokers["broker"]
        dial = ("--broker", broker.backend, "--stats", f"{broker.http}/stats")
        return start_manager(*dial, *QUICK, "--program", program("imagegen-worker"), *arguments, "--", *worker)

    return start


def submit(client, count, first=0):
    seeds = range(first, first + count)
    return [client.submit(f"picture {seed}", seed=seed, width=SIDE, height=SIDE) for seed in seeds]


def assert_all_right(jobs):
    assert [job.result(timeout=120).seed for job in jobs if is_right(job.result(timeout=120))] == [
        job.result().seed for job in jobs
    ]


def workers(client):
    return {row["worker"] for row in client.stats()["per_gpu_stats"]}


def wait_for(fleet, client, holds, what):
    fleet.wait_until(lambda: holds(len(workers(client))), what, timeout=60)


def test_it_follows_the_queue_and_outlives_a_node(nodes, fleet, client, start):
    nodes.tell("add", "one", "2")
    nodes.tell("add", "two", "2")
    manager = start("--max", "3")
    first = submit(client, 400)
    wait_for(fleet, client, lambda count: count == 3, "three workers, and no more")

    nodes.tell("kill", "one")
    wait_for(fleet, client, lambda count: count < 3, "loss of a node")
    nodes.tell("add", "three", "2")
    more = submit(client, 400, first=1000)
    wait_for(fleet, client, lambda count: count == 3, "three workers again, on the nodes that are left")

    assert_all_right(first + more)
    assert client.stats()["totals"]["workers_lost"] >= 1
    wait_for(fleet, client, lambda count: count == 0, "shrinking to none")

    last = submit(client, 20, first=2000)
    assert_all_right(last)
    manager.send_signal(signal.SIGTERM)
    assert manager.wait(60) == 0


def test_a_node_that_is_about_to_go_is_drained(nodes, fleet, client, start):
    nodes.tell("add", "one", "1")
    start("--min", "1", "--max", "1")
    wait_for(fleet, client, lambda count: count == 1, "a worker")
    before = workers(client)
    jobs = submit(client, 100)
    nodes.tell("add", "two", "1")
    nodes.tell("drain", "one")
    fleet.wait_until(lambda: workers(client) and not workers(client) & before, "worker elsewhere")
    nodes.tell("kill", "one")
    assert_all_right(jobs)
    totals = client.stats()["totals"]
    assert totals["workers_lost"] == 0
    assert totals["requeued"].keys() <= {"returned"}


def test_a_daemon_that_dies_is_started_again(nodes, fleet, client, start):
    nodes.tell("add", "one", "1")
    start("--min", "1", "--max", "1")
    wait_for(fleet, client, lambda count: count == 1, "a worker")
    before = workers(client)
    jobs = submit(client, 30)
    os.kill(client.stats()["per_gpu_stats"][0]["pid"], signal.SIGKILL)
    fleet.wait_until(lambda: workers(client) - before, "another worker")
    assert_all_right(jobs)


def test_an_actor_that_is_killed_takes_its_daemon_along_at_once(nodes, fleet, client, start):
    nodes.tell("add", "one", "1")
    start("--min", "1", "--max", "1", worker=("--backend", "simulated", "--simulated-batch-seconds", "300"))
    wait_for(fleet, client, lambda count: count == 1, "a worker")
    before = workers(client)
    (job,) = submit(client, 1)  # it would be drained for five minutes
    fleet.wait_until(lambda: client.stats()["per_gpu_stats"][0]["running"], "work at the worker")
    daemon = psutil.Process(client.stats()["per_gpu_stats"][0]["pid"])
    daemon.parent().kill()
    fleet.wait_until(lambda: ended(daemon), "the end of a daemon without its actor")
    job.cancel()
    fleet.wait_until(lambda: workers(client) - before, "another worker")


def ended(process):
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_setting_that_cannot_work_ends_the_fleet(nodes, start):
    nodes.tell("add", "one", "1")
    manager = start("--min", "1", "--max", "1", worker=("--backend", "simulated", "--max-batch-size", "0"))
    assert manager.wait(60) == 2

"""A real Ray cluster with fake GPUs and simulated workers: scaling and failures lose no request."""

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
    """Return a function that starts the manager for the fleet's broker."""

    def start(*arguments, worker=WORKER):
        broker = fleet.brokers["broker"]
        dial = ("--broker", broker.backend, "--stats", f"{broker.http}/stats")
        return start_manager(*dial, *QUICK, "--program", program("imagegen-worker"), *arguments, "--", *worker)

    return start


def submit(client, count, first=0):
    seeds = range(first, first + count)
    return [client.submit(f"picture {seed}", seed=seed, width=SIDE, height=SIDE) for seed in seeds]


def check_results(jobs):
    assert [job.result(timeout=120).seed for job in jobs if is_right(job.result(timeout=120))] == [
        job.result().seed for job in jobs
    ]


def workers(client):
    return {row["worker"] for row in client.stats()["per_gpu_stats"]}


def wait_for(fleet, client, condition, description):
    fleet.wait_until(lambda: condition(len(workers(client))), description, timeout=60)


def test_the_fleet_scales_with_the_queue_and_survives_the_loss_of_a_node(nodes, fleet, client, start):
    nodes.send("add", "one", "2")
    nodes.send("add", "two", "2")
    manager = start("--max", "3")
    first = submit(client, 400)
    wait_for(fleet, client, lambda count: count == 3, "three workers, and no more")

    nodes.send("kill", "one")
    wait_for(fleet, client, lambda count: count < 3, "loss of a node")
    nodes.send("add", "three", "2")
    more = submit(client, 400, first=1000)
    wait_for(fleet, client, lambda count: count == 3, "three workers again, on the nodes that are left")

    check_results(first + more)
    assert client.stats()["totals"]["workers_lost"] >= 1
    wait_for(fleet, client, lambda count: count == 0, "shrinking to none")

    last = submit(client, 20, first=2000)
    check_results(last)
    manager.send_signal(signal.SIGTERM)
    assert manager.wait(60) == 0


def test_workers_of_a_draining_node_are_drained(nodes, fleet, client, start):
    nodes.send("add", "one", "1")
    start("--min", "1", "--max", "1")
    wait_for(fleet, client, lambda count: count == 1, "a worker")
    before = workers(client)
    jobs = submit(client, 100)
    nodes.send("add", "two", "1")
    nodes.send("drain", "one")
    fleet.wait_until(lambda: workers(client) and not workers(client) & before, "worker elsewhere")
    nodes.send("kill", "one")
    check_results(jobs)
    totals = client.stats()["totals"]
    assert totals["workers_lost"] == 0
    assert totals["requeued"].keys() <= {"returned"}


def test_a_daemon_that_dies_is_restarted(nodes, fleet, client, start):
    nodes.send("add", "one", "1")
    start("--min", "1", "--max", "1")
    wait_for(fleet, client, lambda count: count == 1, "a worker")
    before = workers(client)
    jobs = submit(client, 30)
    os.kill(client.stats()["per_gpu_stats"][0]["pid"], signal.SIGKILL)
    fleet.wait_until(lambda: workers(client) - before, "another worker")
    check_results(jobs)


def test_the_daemon_of_a_killed_actor_ends_at_once(nodes, fleet, client, start):
    nodes.send("add", "one", "1")
    start("--min", "1", "--max", "1", worker=("--backend", "simulated", "--simulated-batch-seconds", "300"))
    wait_for(fleet, client, lambda count: count == 1, "a worker")
    before = workers(client)
    (job,) = submit(client, 1)  # a drain would take five minutes
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
    nodes.send("add", "one", "1")
    manager = start("--min", "1", "--max", "1", worker=("--backend", "simulated", "--max-batch-size", "0"))
    assert manager.wait(60) == 2

"""Failures of real processes: every request still ends in exactly one answer."""

import functools
import os
import signal
import threading

import msgpack
import psutil
import pytest
import zmq
from msgspec.structs import asdict

from imagegen_client import CancelledError, Client, DeadlineExceededError
from imagegen_worker.backends.simulated import CRASH_STATUS
from tests.e2e.conftest import BROKER, SIMULATED, program, start_simulated
from tools.chaos import Load, Report
from tools.fleet import Fleet

SLOW = ("--backend", "simulated", "--simulated-batch-seconds", "3600", "--simulated-image-seconds", "0")


def per_gpu(client, field):
    return {gpu["worker"]: gpu[field] for gpu in client.stats()["per_gpu_stats"]}


def held(client):
    """Return the number of requests at the broker by state."""
    return asdict(client.stats().requests)


@pytest.fixture
def two_brokers(fleet):
    """Two brokers, three workers of both, and two clients that start with different brokers."""
    first, second = (fleet.start_broker(*BROKER, name=name).frontend for name in ("broker0", "broker1"))
    with Client([first, second]) as one, Client([second, first]) as two:
        start_simulated(fleet, one, "a", "b", "c")
        fleet.wait_for_workers(two, 3)
        yield one, two


# ---- workers -----------------------------------------------------------------------------------------------


def test_requests_of_a_frozen_worker_are_requeued_and_its_late_answers_dropped(fleet, client):
    options = ("--backend", "simulated", "--simulated-batch-seconds", "0.5", "--simulated-image-seconds", "0.05")
    start_simulated(fleet, client, "frozen", "other", options=options)
    jobs = [client.submit(f"picture {number}", seed=number) for number in range(20)]
    fleet.wait_until(lambda: per_gpu(client, "running")["frozen"] > 0, "a running batch")
    fleet.processes["frozen"].send_signal(signal.SIGSTOP)
    assert [job.result(120).seed for job in jobs] == list(range(20))
    fleet.processes["frozen"].send_signal(signal.SIGCONT)
    fleet.wait_until(lambda: set(per_gpu(client, "state").values()) == {"ready"}, "both again")
    fleet.wait_until(lambda: len(per_gpu(client, "state")) == 2, "both workers")
    # Its late answers are released: it holds no request, and serves new ones.
    fleet.wait_until(lambda: not any(per_gpu(client, "current_queue_depth").values()), "empty workers")
    assert client.generate("after the thaw", seed=1).seed == 1
    fleet.wait_until(lambda: client.stats()["totals"]["answered"]["result"] == 21, "21 counted results")


def test_a_worker_whose_device_hangs_logs_it_and_exits(fleet, tmp_path):
    fleet.start_broker(*BROKER, "--max-attempts", "2")
    with Client(fleet.frontend) as client:
        hanging = (*SIMULATED, "--simulated-fail", "hang-on:hang", "--step-timeout", "1")
        start_simulated(fleet, client, "one", "two", "three", options=hanging)
        job = client.submit("please hang", seed=1)
        error = job.exception(120)
        assert getattr(error, "code", None) == "poison_request"
        assert "one" in error.message or "two" in error.message or "three" in error.message
        gone = [name for name in ("one", "two", "three") if fleet.processes[name].poll() is not None]
        fleet_logs = [(tmp_path / "logs" / f"{name}.log").read_text().splitlines() for name in gone]
        for name in gone:
            assert fleet.processes.pop(name).returncode != 0
        for lines in fleet_logs:
            assert any("critical" in line and "step" in line for line in lines[-3:]), lines[-3:]
        assert client.generate("a calm picture", seed=2).seed == 2


def test_only_the_poison_request_fails_not_the_others_of_its_batches(fleet, tmp_path):
    fleet.start_broker(*BROKER)
    crashing = ("--max-batch-size", "4", "--max-batch-wait-time", "1", "--simulated-fail", "crash-on:crash")
    with Client(fleet.frontend) as client:
        poison = client.submit("please crash", seed=1)
        bystanders = [client.submit("a calm picture", seed=seed) for seed in (2, 3, 4)]
        for name in ("one", "two", "three"):
            fleet.start_worker(name, *SIMULATED, *crashing)
            assert fleet.processes.pop(name).wait(60) == CRASH_STATUS
        fleet.start_worker("four", *SIMULATED, *crashing)
        assert getattr(poison.exception(120), "code", None) == "poison_request"
        assert [job.result(120).seed for job in bystanders] == [2, 3, 4]
    log = (tmp_path / "logs" / "two.log").read_text()
    assert log.count("request finished") == 0, "they were in two batches with the poison request"


def test_a_rolling_restart_of_workers_under_load_causes_no_error(fleet, patient_client):
    client = patient_client
    start_simulated(fleet, client, "a", "b", "c")
    report = Report(0)
    load = Load([fleet.frontend], report, threading.Lock(), 0)
    for name in ("a", "b", "c"):
        answered = report.answered
        fleet.wait_until(lambda answered=answered: report.answered > answered + 20, "answers")
        assert fleet.terminate(name) == 0
        fleet.start_worker(name, *SIMULATED)
        fleet.wait_for_workers(client, 3)
    load.stop()
    load.finish(threading.TIMEOUT_MAX)
    assert report.good, report.as_dict()
    assert client.stats()["totals"]["workers_lost"] == 0


# ---- brokers -----------------------------------------------------------------------------------------------


def test_two_brokers_share_the_workers(fleet, two_brokers):
    jobs = [client.submit(f"picture {number}", seed=number) for number in range(60) for client in two_brokers]
    assert sorted(job.result(120).seed for job in jobs) == sorted([*range(60), *range(60)])
    totals = functools.partial(per_gpu, two_brokers[0], "total_requests")
    fleet.wait_until(lambda: sum(totals().values()) >= 120, "complete totals")
    assert sum(totals().values()) == 120
    assert min(totals().values()) > 0


def test_a_client_fails_over_to_the_other_broker_without_loss(fleet, two_brokers):
    one, _ = two_brokers
    jobs = [one.submit(f"picture {number}", seed=number) for number in range(60)]
    fleet.wait_until(lambda: sum(per_gpu(one, "running").values()) > 0, "a running batch")
    fleet.kill("broker0")
    assert [job.result(120).seed for job in jobs] == list(range(60))


def test_a_rolling_restart_of_brokers_under_load_causes_no_error(fleet, two_brokers):
    endpoints = [place.frontend for place in fleet.brokers.values()]
    report, lock = Report(0), threading.Lock()
    loads = [Load(order, report, lock, 1000 * n) for n, order in enumerate((endpoints, endpoints[::-1]))]
    for name in ("broker0", "broker1"):
        answered = report.answered
        fleet.wait_until(lambda answered=answered: report.answered > answered + 20, "answers")
        assert fleet.terminate(name) == 0
        fleet.start_broker(*BROKER, name=name)
        with Client(fleet.brokers[name].frontend) as client:
            fleet.wait_for_workers(client, 3)
    for load in loads:
        load.stop()
    for load in loads:
        load.finish(threading.TIMEOUT_MAX)
    assert report.good, report.as_dict()


# ---- clients -----------------------------------------------------------------------------------------------


def test_requests_of_a_dead_client_are_removed_and_stopped(fleet, client):
    start_simulated(fleet, client, "a", options=("--max-batch-size", "2", *SLOW))
    bench = [program("imagegen"), "bench", "--burst", "20", "--broker", fleet.frontend]
    process = fleet.spawn("bench", ["imagegen", *bench[1:]])
    fleet.wait_until(lambda: held(client)["queued"] > 0 and held(client)["dispatched"] > 0, "a backlog")
    process.kill()
    process.wait()
    fleet.processes.pop("bench")
    fleet.wait_until(lambda: not any(held(client).values()), "an empty broker")
    # A batch takes an hour: an idle worker has stopped it.
    fleet.wait_until(lambda: per_gpu(client, "current_queue_depth") == {"a": 0}, "an idle worker")
    assert client.stats()["totals"]["clients_lost"] == 1


def test_cancels_and_deadlines_end_waiting_and_running_requests(fleet, client):
    slow = ("--backend", "simulated", "--simulated-batch-seconds", "20", "--simulated-image-seconds", "0")
    start_simulated(fleet, client, "a", options=("--max-batch-size", "1", "--capacity", "2", *slow))
    running, waiting_there, waiting_here = (client.submit(f"picture {n}", seed=n) for n in range(3))
    one_of_each = {"receiving": 0, "queued": 1, "dispatched": 2, "delivered": 0}
    fleet.wait_until(lambda: held(client) == one_of_each, "one of each")
    late = client.submit("late", seed=4, timeout_seconds=0.3)
    with pytest.raises(DeadlineExceededError):
        late.result(30)
    for job in (waiting_here, waiting_there, running):
        job.cancel()
        with pytest.raises(CancelledError):
            job.result(30)
    fleet.wait_until(lambda: per_gpu(client, "current_queue_depth") == {"a": 0}, "an idle worker")
    fleet.wait_until(lambda: not any(held(client).values()), "an empty broker")


def test_a_client_that_does_not_read_costs_bounded_memory_and_delays_no_other(fleet, client):
    quick = ("--backend", "simulated", "--simulated-batch-seconds", "0", "--simulated-image-seconds", "0")
    start_simulated(fleet, client, "a", options=quick)
    context = zmq.Context()
    stalled = context.socket(zmq.DEALER)
    stalled.linger = 0
    stalled.rcvhwm = 1
    stalled.rcvbuf = 4096
    stalled.connect(fleet.frontend)
    ids = [os.urandom(16) for _ in range(300)]
    for number, request_id in enumerate(ids):
        body = msgpack.packb({"prompt": "x" * 20, "seed": number, "width": 512, "height": 512})
        stalled.send_multipart([msgpack.packb({"v": 2, "type": "submit", "request_id": request_id}), body])
    broker = psutil.Process(fleet.processes["broker"].pid)
    generated = 0
    while generated < 300:
        stalled.send(msgpack.packb({"v": 2, "type": "heartbeat"}))
        assert client.generate("in between", seed=generated, width=64, height=64, timeout_seconds=60).worker == "a"
        generated = client.stats()["totals"]["dispatched"]
    assert broker.memory_info().rss < 400 * 1024 * 1024
    stalled.close()
    context.term()
    fleet.wait_until(lambda: client.stats()["clients"] == 1, "the removal of the stalled client")


def test_a_worker_that_starts_before_its_broker_registers_later(tmp_path):
    with Fleet(log_folder=tmp_path) as fleet:
        place = fleet.start_broker(*BROKER)
        assert fleet.terminate("broker") == 0
        fleet.start_worker("early", *SIMULATED)
        fleet.start_broker(*BROKER, at=place)
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, 1)
            assert client.generate("x", seed=1).worker == "early"

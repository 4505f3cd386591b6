"""The supervisor: a worker process for each GPU; workers serve, die, are restarted and drain independently."""

import os
import re
import signal
import urllib.request

import psutil
import pytest

from tests.e2e.conftest import SIMULATED, bench, command

NAMES = ["sim-0", "sim-1", "sim-2"]
LONG = ("--backend", "simulated", "--simulated-batch-seconds", "0.3", "--simulated-image-seconds", "0.05")


def per_gpu(client, field):
    return {gpu["worker"]: gpu[field] for gpu in client.stats()["per_gpu_stats"]}


@pytest.fixture
def start(fleet, client):
    """Start a supervisor of three workers; return their processes by name."""

    def start(*options, name="sim"):
        before = len(per_gpu(client, "pid"))
        fleet.start_worker(name, "--gpu", "0,1,2", *options)
        fleet.wait_for_workers(client, before + 3)
        pids = per_gpu(client, "pid")
        return {worker: psutil.Process(pid) for worker, pid in pids.items() if worker.startswith(name)}

    return start


def test_a_supervised_fleet_serves_a_burst(fleet, client, start, tmp_path):
    workers = start(*SIMULATED, "--http-port", "0")
    assert sorted(workers) == NAMES
    assert per_gpu(client, "gpu_id") == {"sim-0": 0, "sim-1": 1, "sim-2": 2}
    assert {process.ppid() for process in workers.values()} == {fleet.processes["sim"].pid}
    groups = {os.getpgid(process.pid) for process in (*workers.values(), fleet.processes["sim"])}
    assert len(groups) == 4, "only the supervisor receives a Ctrl-C in the terminal"
    report = bench(fleet, "--burst", "30")
    assert (report["successful"], report["num_gpus"]) == (30, 3)
    fleet.wait_until(lambda: sum(per_gpu(client, "total_images").values()) == 30, "the totals")
    totals = per_gpu(client, "total_images")
    assert all(totals.values()), "each worker served"
    served = re.findall(
        r"metrics server started address=(\S+) worker=(\S+)", (tmp_path / "logs" / "sim.log").read_text()
    )
    assert sorted(worker for _, worker in served) == NAMES
    for address, worker in served:
        with urllib.request.urlopen(address, timeout=60) as answer:
            line = f'images_total{{gpu="{worker[-1]}",worker="{worker}"}} {totals[worker]}.0'
            assert line in answer.read().decode()


def test_a_killed_worker_is_restarted_and_the_others_are_unaffected(fleet, client, start):
    before = start(*LONG)
    jobs = [client.submit(f"picture {number}", seed=number) for number in range(40)]
    fleet.wait_until(lambda: per_gpu(client, "running")["sim-1"] > 0, "a running batch")
    before["sim-1"].kill()
    assert [job.result(60).seed for job in jobs] == list(range(40))
    fleet.wait_until(lambda: per_gpu(client, "pid").get("sim-1") not in (None, before["sim-1"].pid), "a new sim-1")
    after = per_gpu(client, "pid")
    assert {name for name in NAMES if after[name] != before[name].pid} == {"sim-1"}
    assert client.stats()["totals"]["workers_lost"] == 1
    assert bench(fleet, "--burst", "12")["num_gpus"] == 3


def test_workers_end_with_their_supervisor(fleet, start):
    workers = start(*LONG)
    fleet.kill("sim")
    gone, alive = psutil.wait_procs(workers.values(), timeout=60)
    assert (len(gone), alive) == (3, [])


@pytest.mark.parametrize("before", [(), (signal.SIGUSR1,)], ids=["", "after-a-hook"])
def test_sigterm_to_the_supervisor_drains_all_workers(fleet, client, start, before):
    start(*LONG, name="leaving")
    start(*SIMULATED, name="staying")
    jobs = [client.submit(f"picture {number}", seed=number) for number in range(60)]
    fleet.wait_until(lambda: per_gpu(client, "running")["leaving-2"] > 0, "a running batch")
    for number in before:
        fleet.processes["leaving"].send_signal(number)
    assert fleet.terminate("leaving") == 0
    assert [job.result(60).seed for job in jobs] == list(range(60))
    staying = ["staying-0", "staying-1", "staying-2"]
    fleet.wait_until(lambda: sorted(per_gpu(client, "state")) == staying, "statistics after the drain")
    assert client.stats()["totals"]["workers_lost"] == 0


def test_sigterm_to_every_process_of_the_service_drains_too(fleet, client, start):
    """As systemd does by default (KillMode=control-group)."""
    workers = start(*LONG, "--simulated-batch-seconds", "3")
    jobs = [client.submit(f"picture {number}", seed=number) for number in range(6)]
    fleet.wait_until(lambda: all(per_gpu(client, "running").values()), "three running batches")
    for process in workers.values():
        process.send_signal(signal.SIGTERM)
    assert fleet.terminate("sim") == 0
    assert [job.result(60).seed for job in jobs] == list(range(6))
    assert client.stats()["totals"]["workers_lost"] == 0


def test_a_worker_that_was_drained_by_a_signal_is_not_restarted(fleet, client, start, tmp_path):
    workers = start(*SIMULATED)
    workers["sim-0"].send_signal(signal.SIGTERM)
    psutil.wait_procs([workers["sim-0"]], timeout=60)
    log = tmp_path / "logs" / "sim.log"
    fleet.wait_until(lambda: "worker exited, not restarted worker=sim-0" in log.read_text(), "its end in the log")
    fleet.wait_until(lambda: len(per_gpu(client, "pid")) == 2, "two workers")
    assert bench(fleet, "--burst", "10")["num_gpus"] == 2
    assert fleet.terminate("sim") == 0


def test_workers_with_a_broken_model_are_not_restarted(fleet, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model_index.json").write_text("no model")
    fleet.spawn(
        "sim", ["imagegen-worker", "--gpu", "0,1", "--device", "cpu", "--name", "w", "--model", str(broken)]
    )
    assert fleet.processes["sim"].wait(120) == 78
    log = (tmp_path / "logs" / "sim.log").read_text()
    assert len(re.findall("worker process started worker=w-[01] ", log)) == 2
    assert "failures=" not in log


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--device", "cpu", "--model", "/no/such"), "model_index.json"),
        (("--backend", "simulated", "--http-port", "65535"), "the port of GPU 1 would be 65536"),
    ],
)
def test_an_error_that_concerns_all_workers_is_reported_before_any_starts(options, words):
    done = command("imagegen-worker", "--gpu", "0,1", *options, check=False)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "started" not in done.stderr

"""The worker part of the Slurm script in a simulated environment: workers serve, and SIGTERM drains them."""

from pathlib import Path

from tests.e2e.conftest import SIMULATED, program

SCRIPT = Path(__file__).parents[2] / "deploy/slurm/workers.sbatch"


def task(number):
    return {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": str(number), "SLURMD_NODENAME": "gpu-12"}


def test_the_tasks_of_an_array_serve_requests_and_drain(fleet, client):
    broker = fleet.brokers["broker"].backend
    environment = {"IMAGEGEN_BROKER": broker, "IMAGEGEN_BIN": str(Path(program("imagegen-worker")).parent)}
    for number in (0, 1):
        fleet.spawn(
            f"task-{number}",
            ["imagegen-worker", *SIMULATED],
            environment=environment | task(number),
            prefix=["bash", "-c", f'shift; exec bash {SCRIPT} "$@"', "sbatch"],
        )
    fleet.wait_for_workers(client, 2)
    assert {row["worker"] for row in client.stats()["per_gpu_stats"]} == {"gpu-12-71-0", "gpu-12-71-1"}

    jobs = [client.submit(f"picture {seed}", seed=seed, width=32, height=32) for seed in range(60)]
    assert fleet.terminate("task-0") == 0
    assert [job.result(timeout=60).seed for job in jobs] == list(range(60))
    assert client.stats()["totals"]["workers_lost"] == 0

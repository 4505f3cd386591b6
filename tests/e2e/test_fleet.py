"""The basic features with real processes: bursts, strategies, failures, restarts, drains."""

import io
import json
import re
import urllib.request

import pytest
from PIL import Image

from imagegen_client import Client
from tests.e2e.conftest import BROKER, PATIENT, SIMULATED, bench, command, start_simulated
from tests.equality import same_image


def per_gpu(client, field):
    return {gpu["worker"]: gpu[field] for gpu in client.stats()["per_gpu_stats"]}


def wait_for_totals(fleet, client, requests):
    """Wait until the workers' heartbeats have reported so many requests in all."""
    fleet.wait_until(lambda: sum(per_gpu(client, "total_requests").values()) == requests, "the totals")


def test_a_burst_of_fifty_is_spread_evenly(fleet):
    fleet.start_broker(*PATIENT, "--strategy", "queue-depth")
    with Client(fleet.frontend) as client:
        start_simulated(fleet, client, "a", "b", "c", "d")
        report = bench(fleet, "--burst", "50")
        wait_for_totals(fleet, client, 50)
        totals = per_gpu(client, "total_requests")
    assert report["requests"] == report["successful"] == 50
    assert report["failed"] == 0
    assert report["num_gpus"] == 4
    assert report["total_batches"] >= 50 / 8
    assert report["avg_batch_size"] == pytest.approx(50 / report["total_batches"], rel=0.01)
    assert report["throughput_images_per_second"] > 0
    assert set(report["latency_seconds"]) == {"p50", "p95", "p99"}
    assert sum(totals.values()) == 50
    assert set(totals.values()) == {12, 13}
    again = bench(fleet, "--burst", "10")
    assert again["total_batches"] <= 10, "only this burst is counted"


@pytest.mark.parametrize("strategy", ["queue-depth", "least-wait"])
def test_fast_workers_get_more_requests(fleet, strategy):
    fleet.start_broker(*PATIENT, "--strategy", strategy)
    with Client(fleet.frontend) as client:
        for name, batch, image in (("fast", "0.04", "0.02"), ("slow", "0.5", "0.25")):
            options = ("--simulated-batch-seconds", batch, "--simulated-image-seconds", image)
            fleet.start_worker(name, "--backend", "simulated", "--max-batch-size", "4", *options)
        fleet.wait_for_workers(client, 2)
        assert client.stats()["strategy"] == strategy
        assert bench(fleet, "--burst", "60")["successful"] == 60
        wait_for_totals(fleet, client, 60)
        totals = per_gpu(client, "total_requests")
        assert totals["fast"] > 2 * totals["slow"]


def test_the_environment_variable_of_the_guide_sets_the_strategy(fleet):
    fleet.spawn("probe", ["imagegen-broker", "--version"]).wait(60)
    fleet.processes.pop("probe")
    done = command("imagegen-broker", check=False, env={"GPU_LOAD_BALANCE_STRATEGY": "roulette", "PATH": ""})
    assert done.returncode == 2
    assert "queue-depth" in done.stderr


def test_no_request_is_lost_when_a_worker_is_killed_during_a_batch(fleet, client):
    options = ("--backend", "simulated", "--simulated-batch-seconds", "0.3", "--simulated-image-seconds", "0.05")
    start_simulated(fleet, client, "victim", "other", options=options)
    jobs = [client.submit(f"picture {number}", seed=number) for number in range(30)]
    fleet.wait_until(lambda: per_gpu(client, "running")["victim"] > 0, "a running batch")
    fleet.kill("victim")
    results = [job.result(120) for job in jobs]
    assert [result.seed for result in results] == list(range(30))
    assert any(result.worker == "other" and result.attempt == 2 for result in results)
    assert client.stats()["totals"]["workers_lost"] == 1


def test_after_a_broker_restart_no_request_is_lost_or_generated_twice(fleet, tmp_path):
    fleet.start_broker()
    with Client(fleet.frontend) as client:
        options = ("--device", "cpu", "--torch-threads", "1", "--max-batch-size", "2")
        for name in ("a", "b"):
            fleet.start_worker(name, *options)
        fleet.wait_for_workers(client, 2)
        prompts = [f"a {colour} circle on a white background" for colour in ("red", "green", "blue", "yellow")] * 4
        alone = {prompt: client.generate(prompt, seed=5).image for prompt in set(prompts)}
        jobs = [client.submit(prompt, seed=5) for prompt in prompts]
        fleet.wait_until(lambda: sum(per_gpu(client, "running").values()) > 0, "a running batch")
        fleet.kill("broker")
        fleet.start_broker()
        images = [job.result(90).image for job in jobs]
        for prompt, image in zip(prompts, images, strict=True):
            assert same_image(image, alone[prompt])
    for name in ("a", "b"):
        assert fleet.terminate(name) == 0
    logs = "".join((tmp_path / "logs" / f"{name}.log").read_text() for name in ("a", "b"))
    generated = re.findall(r"request finished request_id=(\w+)", logs)
    assert len(generated) == len(set(generated)) == len(alone) + len(prompts)


def test_sigterm_drains_a_worker_under_load(fleet, patient_client):
    client = patient_client
    options = ("--backend", "simulated", "--simulated-batch-seconds", "0.5", "--simulated-image-seconds", "0.05")
    start_simulated(fleet, client, "leaving", "staying", options=options)
    jobs = [client.submit(f"picture {number}", seed=number) for number in range(40)]
    fleet.wait_until(lambda: per_gpu(client, "running")["leaving"] > 0, "a running batch")
    assert fleet.terminate("leaving") == 0
    assert [job.result(120).seed for job in jobs] == list(range(40))
    fleet.wait_until(lambda: list(per_gpu(client, "state")) == ["staying"], "one worker only")
    assert client.stats()["totals"]["workers_lost"] == 0


def test_a_request_that_crashes_workers_ends_as_poison_request(fleet):
    fleet.start_broker(*BROKER, "--max-attempts", "2")
    with Client(fleet.frontend) as client:
        crashing = (*SIMULATED, "--simulated-fail", "crash-on:crash")
        start_simulated(fleet, client, "one", "two", "three", options=crashing)
        poison = client.submit("please crash", seed=1)
        error = poison.exception(120)
        assert error is not None
        assert getattr(error, "code", None) == "poison_request"
        assert client.generate("a calm picture", seed=2).seed == 2


def test_the_http_endpoints_of_a_running_fleet(fleet, client):
    start_simulated(fleet, client, "a")
    client.generate("x", seed=1)
    with urllib.request.urlopen(f"{fleet.http}/stats", timeout=60) as answer:
        (gpu,) = json.load(answer)["per_gpu_stats"]
    assert gpu["worker"] == "a"
    for path, words in (("/healthz", "ok"), ("/readyz", "ok"), ("/metrics", "imagegen_broker_answers_total")):
        with urllib.request.urlopen(fleet.http + path, timeout=60) as answer:
            assert words in answer.read().decode()


def test_generate_writes_an_image_and_prints_its_path(fleet, client, tmp_path):
    start_simulated(fleet, client, "a")
    out = tmp_path / "picture.png"
    done = command(
        "imagegen", "generate", "a red circle", "--broker", fleet.frontend, "--out", str(out), "--seed", "3",
        "--steps", "2", "--width", "64", "--height", "32", "--guidance-scale", "2",
    )  # fmt: skip
    assert str(out) in done.stdout
    assert Image.open(io.BytesIO(out.read_bytes())).size == (64, 32)
    stats = command("imagegen", "stats", "--json", "--broker", fleet.frontend)
    assert json.loads(stats.stdout)["num_gpus"] == 1
    assert "a" in command("imagegen", "stats", "--broker", fleet.frontend).stdout

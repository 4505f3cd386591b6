"""The `imagegen` command against a real broker."""

import json
import re
import threading
from collections import Counter

import pytest
from click.testing import CliRunner
from PIL import Image

from imagegen_cli.commands.errors import HOW_TO_START
from imagegen_cli.main import main
from imagegen_client import (
    Client,
)
from tests.integration.client.peers import NOWHERE, PATIENCE


def imagegen(broker, *arguments):
    return CliRunner().invoke(main, [*arguments, "--broker", getattr(broker, "frontend_endpoint", broker)])


def wait_for_gpus(client, number, batches=0):
    """Wait until the workers are registered and have reported their batches."""
    pause = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        gpus = client.stats()["per_gpu_stats"]
        if len(gpus) == number and sum(gpu["total_batches"] for gpu in gpus) >= batches:
            return
        pause.wait(0.01)
    raise AssertionError(f"not {number} workers with {batches} batches: {gpus}")


def test_the_command_generates_an_image(broker, worker, tmp_path):
    out = tmp_path / "circle.webp"
    done = imagegen(broker, "generate", "a red circle", "--out", str(out), "--seed", "7", "--num-images", "2")
    assert (done.exit_code, done.stderr) == (0, "")
    first, second, last = done.stdout.splitlines()
    assert [first, second] == [str(tmp_path / "circle-0.webp"), str(tmp_path / "circle-1.webp")]
    assert re.fullmatch(r"seed=7 worker=raw seconds=\d+\.\d\d", last)
    with Image.open(first) as image:
        assert (image.format, image.size) == ("WEBP", (4, 2))


def test_the_default_file_name_contains_the_seed(broker, worker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = imagegen(broker, "generate", "x")
    (path,) = tmp_path.iterdir()
    assert path.name in done.stdout
    assert f"seed={path.stem.removeprefix('imagegen-')} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["fail"], "error: generation_failed: it broke\n"),
        (["x", "--model", "another"], "error: model_not_found: "),
        (["hold", "--timeout", "0.2"], "error: deadline_exceeded: "),
    ],
)
def test_the_command_prints_the_error(broker, worker, tmp_path, arguments, line):
    done = imagegen(broker, "generate", *arguments, "--out", str(tmp_path / "a.png"))
    assert done.exit_code == 1
    assert done.stderr.startswith(line)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_command_without_a_broker(tmp_path):
    for arguments in (["generate", "x", "--out", str(tmp_path / "a.png")], ["stats"], ["bench", "--burst", "1"]):
        done = imagegen(NOWHERE, *arguments, "--connect-timeout", "0.1")
        assert done.exit_code == 3
        unreachable = "error: broker_unreachable: no broker answered at tcp://127.0.0.1:1 within 0.1 s"
        assert done.stderr == f"{unreachable}{HOW_TO_START}\n"


def test_brokers_are_read_from_the_environment(broker, worker):
    with Client(broker.frontend_endpoint) as client:
        wait_for_gpus(client, 1)
    runner = CliRunner(env={"IMAGEGEN_FRONTEND": f"{broker.frontend_endpoint} {NOWHERE}"})
    done = runner.invoke(main, ["stats", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["num_gpus"] == 1
    assert "raw" in runner.invoke(main, ["stats"]).stdout


def test_bench_measures_a_burst(broker, worker, start_worker):
    other = start_worker(broker, name="other")
    with Client(broker.frontend_endpoint) as client:
        for _ in client.map(["x"] * 10):
            pass
        wait_for_gpus(client, 2, batches=10)
    done = imagegen(broker, "bench", "--burst", "50", "--json", "--seed", "5", "--prompt", "x")
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert list(said) == [
        "total_duration_seconds", "requests", "successful", "failed", "throughput_images_per_second",
        "latency_seconds", "num_gpus", "total_batches", "avg_batch_size",
    ]  # fmt: skip
    assert (said["requests"], said["successful"], said["failed"], said["num_gpus"]) == (50, 50, 0, 2)
    assert (said["total_batches"], said["avg_batch_size"]) == (50, 1.0), "this burst only"
    latency = said["latency_seconds"]
    assert 0 < latency["p50"] <= latency["p95"] <= latency["p99"] <= said["total_duration_seconds"]
    assert Counter(worker.begun + other.begun) == {"x": 60}


def test_bench_counts_failures(broker, worker):
    done = imagegen(broker, "bench", "--burst", "3", "--prompt", "fail")
    assert done.exit_code == 1
    assert "0/3" in done.stdout
    assert "3 (generation_failed 3)" in done.stdout

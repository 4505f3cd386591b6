"""The logs of real processes: JSON lines, with one request id from the client to the worker."""

import contextlib
import json
import logging
import os
import re
import subprocess

import pytest

from imagegen_client import Client
from tests.e2e.conftest import SIMULATED, command, program

JSON = ("--log-format", "json")


def objects(tmp_path, name):
    """Return the parsed JSON lines of a process's log."""
    lines = (tmp_path / "logs" / f"{name}.log").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_one_id_is_found_in_the_logs_of_client_broker_and_worker(fleet, tmp_path, caplog):
    fleet.start_broker(*JSON)
    fleet.start_worker("painter", *SIMULATED, *JSON)
    with caplog.at_level(logging.DEBUG, "imagegen.client"), Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        job = client.submit("a red circle", num_images=2)
        assert job.result(60).request_id == job.request_id
    fleet.terminate("painter")
    fleet.terminate("broker")

    own = [record.getMessage() for record in caplog.records if job.request_id in record.getMessage()]
    assert own == [
        f"request sent request_id={job.request_id} broker={fleet.frontend}",
        f"request ended request_id={job.request_id} outcome=result worker=painter",
    ]
    [answered] = [line for line in objects(tmp_path, "broker") if line.get("request_id") == job.request_id]
    assert (answered["message"], answered["worker"], answered["outcome"]) == (
        "request answered",
        "painter",
        "result",
    )
    assert 0 <= answered["queue_seconds"] <= answered["total_seconds"]
    [generated] = [line for line in objects(tmp_path, "painter") if line.get("request_id") == job.request_id]
    assert (generated["message"], generated["images"], generated["worker"], generated["gpu"]) == (
        "request finished",
        2,
        "painter",
        0,
    )


def test_libraries_write_no_log_lines(fleet, tmp_path):
    fleet.start_broker("--heartbeat-interval", "0.2")
    fleet.start_worker("painter", "--device", "cpu", *JSON)
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
    fleet.terminate("painter")
    assert {line["level"] for line in objects(tmp_path, "painter")} == {"info"}


def test_logging_of_requests_can_be_disabled(fleet, tmp_path):
    fleet.start_broker("--heartbeat-interval", "0.2", "--no-log-requests")
    fleet.start_worker("painter", *SIMULATED)
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        client.generate("a red circle")
    fleet.stop()
    log = (tmp_path / "logs" / "broker.log").read_text()
    assert re.search(r"info worker registered worker=painter host=\S+ gpu=0 ", log)
    assert "request answered" not in log


def test_settings_files_configure_a_broker_and_a_worker(fleet, tmp_path):
    (tmp_path / "broker.toml").write_text(
        'heartbeat_interval = 0.2\nstrategy = "queue-depth"\nlog_format = "json"\n'
    )
    fleet.start_broker("--config", str(tmp_path / "broker.toml"))
    (tmp_path / "worker.toml").write_text(
        f'broker = ["{fleet.brokers["broker"].backend}"]\nbackend = "simulated"\nname = "from-file"\n'
    )
    environment = {"IMAGEGEN_WORKER_CONFIG": str(tmp_path / "worker.toml")}
    fleet.spawn("worker", ["imagegen-worker"], environment=environment)
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        statistics = client.stats()
        assert statistics["strategy"] == "queue-depth"
        assert [gpu["worker"] for gpu in statistics["per_gpu_stats"]] == ["from-file"]
    fleet.stop()
    assert objects(tmp_path, "broker")[0]["strategy"] == "queue-depth"


@pytest.mark.parametrize("role", ["imagegen-broker", "imagegen-worker"])
def test_check_config_neither_binds_nor_loads(role, tmp_path):
    file = tmp_path / "x.toml"
    file.write_text('log_level = "debug"\n')
    done = command(role, "--config", str(file), "--check-config")
    assert re.search(rf'^log_level = "debug" +# file {file}:1$', done.stdout, re.MULTILINE)
    file.write_text("step_timeout = 'never'\n")
    done = command(role, "--config", str(file), "--check-config", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f'{file}:1: step_timeout must be a number, got "never"' in done.stderr


def test_a_start_error_is_a_json_log_line():
    words = [program("imagegen-worker"), "--backend", "simulated", "--http-host", "192.0.2.1", "--http-port", "0"]
    done = subprocess.run([*words, *JSON], capture_output=True, text=True, timeout=60, check=False)
    last = json.loads(done.stderr.splitlines()[-1])
    assert done.returncode == 1
    assert (last["level"], last["gpu"]) == ("critical", 0)
    assert last["message"].startswith("--http-port: cannot bind 192.0.2.1:0")


def test_a_broker_serves_while_its_stderr_is_not_read(tmp_path):
    """Stderr is a full pipe, so not even the first log line can be written."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while os.write(writer, b"x" * 4096):
            pass
    os.set_blocking(writer, True)
    words = [program("imagegen-broker"), "--http", "off"]
    words += ["--frontend", f"ipc://{tmp_path}/frontend", "--backend", f"ipc://{tmp_path}/backend"]
    with os.fdopen(reader), os.fdopen(writer) as stderr, subprocess.Popen(words, stderr=stderr) as process:
        try:
            with Client(f"ipc://{tmp_path}/frontend", connect_timeout=60) as client:
                assert client.stats()["clients"] == 1
            process.terminate()
            assert process.wait(60) == 0
        finally:
            process.kill()

"""`imagegen doctor` on fleets that are healthy, dead, closed by keys, or lack a worker."""

import json
import signal

import pytest

from imagegen_client import Client
from tests.e2e.conftest import BROKER, PATIENT, command, start_simulated


def doctor(*arguments):
    """Return the exit status, the findings that are not ok, and all messages by check."""
    done = command("imagegen", "doctor", "--json", "--connect-timeout", "20", *arguments, check=False)
    assert done.stderr == ""
    report = json.loads(done.stdout)
    wrong = [
        (each["check"], each["message"], each["remedy"])
        for each in report["findings"]
        if each["status"] == "problem"
    ]
    messages = {}
    for each in report["findings"]:
        messages.setdefault(each["check"], []).append(each["message"])
    return done.returncode, wrong, messages


def test_a_healthy_fleet(fleet, patient_client):
    start_simulated(fleet, patient_client, "a", "b")
    http = fleet.http.removeprefix("http://")
    status, wrong, messages = doctor("--broker", fleet.frontend, "--http", http, "--only", "fleet")
    assert (status, wrong) == (0, [])
    assert messages["broker"] == [messages["broker"][0]]
    assert messages["broker"][0].startswith(f"{fleet.frontend} answers: ")
    assert messages["http"] == [f"http://{http}/healthz answers"]
    assert len(messages["worker"]) == 2
    assert messages["model"] == [f"served by {fleet.frontend}: simulated (default)"]
    (versions,) = messages["version"]
    assert versions.endswith(f": this client, {fleet.frontend}, a, b")


def test_this_machine(fleet, patient_client):
    place, broker = fleet.brokers["broker"], fleet.processes["broker"].pid
    http = place.http.removeprefix("http://")
    words = ("--broker", place.frontend, "--http", http, "--model", "builtin:shapes", "--model", "/nowhere")
    done = command("imagegen", "doctor", "--only", "machine", *words, check=False)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    for port, option in ((place.frontend, "--frontend"), (http, "--http")):
        number = port.rpartition(":")[2]
        assert f"ok       port: port {number} ({option}) is used by the broker, process {broker}" in lines
    assert "ok       model files: builtin:shapes: accepted by imagegen-worker" in lines
    (nowhere,) = [line for line in lines if line.startswith("problem  model files: ")]
    assert "/nowhere: --model: '/nowhere' does not exist" in nowhere
    assert "-> correct --model" in nowhere
    assert {line[9:].partition(":")[0] for line in lines} >= {"gpu", "torch", "disk", "memory"}


def test_a_dead_broker(fleet):
    place = fleet.start_broker(*BROKER)
    fleet.kill("broker")
    status, wrong, _ = doctor("--broker", place.frontend, "--connect-timeout", "1", "--only", "fleet")
    assert status == 1
    ((check, message, remedy),) = wrong
    assert (check, message) == ("broker", f"nothing listens at {place.frontend}")
    assert "start a fleet with imagegen up" in remedy


def test_the_backend_endpoint_given_as_the_frontend(fleet):
    place = fleet.start_broker(*BROKER)
    status, wrong, _ = doctor("--broker", place.backend, "--connect-timeout", "1", "--only", "fleet")
    assert status == 1
    assert f"{place.backend} rejects this client: this is the broker's endpoint for workers" in wrong[0][1]
    assert "not its backend" in wrong[0][2]


@pytest.fixture
def keys(tmp_path):
    folder = tmp_path / "keys"
    for name, place in (("broker", ""), ("alice", "clients"), ("gpu0", "workers"), ("mallory", "")):
        command("imagegen", "keygen", name, "--out", str(folder / place))
    return folder


def test_keys(fleet, keys):
    fleet.start_broker(
        *PATIENT, "--key", str(keys / "broker.key_secret"),
        "--authorized-clients", str(keys / "clients"), "--authorized-workers", str(keys / "workers"),
    )  # fmt: skip
    place = ("--broker", fleet.frontend, "--only", "fleet", "--broker-key", str(keys / "broker.key"))
    alice, mallory = keys / "clients" / "alice.key_secret", keys / "mallory.key_secret"
    _, wrong, messages = doctor(*place, "--key", str(alice))
    assert messages["key"] == [f"--key: {alice}", f"--broker-key: {keys / 'broker.key'}"]
    assert [check for check, *_ in wrong] == ["worker"]  # the key does not exist
    status, wrong, _ = doctor(*place, "--key", str(mallory))
    assert status == 1
    ((check, message, remedy),) = wrong
    assert check == "broker"
    assert message == f"{fleet.frontend} rejects this client: the broker does not accept this key"
    assert "--authorized-clients" in remedy
    mallory.chmod(0o644)
    _, wrong, _ = doctor(*place, "--key", str(mallory))
    assert [check for check, *_ in wrong] == ["key", "broker"]
    status, wrong, messages = doctor(*place, "--key", str(keys / "mallory.key"))
    assert status == 1
    assert "no secret key" in wrong[0][1]
    assert "broker" not in messages


def test_a_killed_worker(fleet):
    fleet.start_broker(*BROKER)
    with Client(fleet.frontend) as client:
        start_simulated(fleet, client, "a")
        fleet.kill("a")
        fleet.wait_until(lambda: client.stats()["num_gpus"] == 0, "no worker")
    status, wrong, messages = doctor("--broker", fleet.frontend, "--only", "fleet")
    assert status == 1
    assert [check for check, *_ in wrong] == ["worker", "model"]
    assert wrong[0][1] == f"{fleet.frontend} has no worker: requests wait"
    assert wrong[1][1] == "no worker serves simulated, the default model"
    assert messages["worker"][1].startswith(f"{fleet.frontend} has lost 1 worker in its uptime of ")


def test_a_frozen_worker(fleet, patient_client):
    start_simulated(fleet, patient_client, "a")
    fleet.processes["a"].send_signal(signal.SIGSTOP)
    try:

        def late():
            return patient_client.stats()["per_gpu_stats"][0]["last_heard_seconds"] > 1.0

        fleet.wait_until(late, "missing heartbeats")
        done = command("imagegen", "doctor", "--broker", fleet.frontend, "--only", "fleet")
    finally:
        fleet.processes["a"].send_signal(signal.SIGCONT)
    (line,) = [line for line in done.stdout.splitlines() if "worker: a (" in line]
    assert line.startswith("warning  ")
    assert "heartbeats missed -> check its process" in line
    assert "counts as dead after 20 s" in line


def test_no_package_of_the_other_roles_is_imported():
    code = "import sys, imagegen_cli.commands.doctor; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = set(command("python", "-c", code).stdout.split())
    assert not loaded & {"torch", "imagegen_worker", "imagegen_broker", "pynvml"}

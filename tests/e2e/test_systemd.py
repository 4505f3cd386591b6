"""The units on a real systemd: installed, started, killed, hung, stopped and uninstalled."""

import json
import re
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import pytest

from tests.programs import needs
from tools.machine import Machine, available

_why_not = available()
pytestmark = [
    needs("systemctl", "systemd-analyze", "unshare", "nsenter", "pivot_root"),
    pytest.mark.skipif(_why_not is not None, reason=str(_why_not)),
]

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("common", "protocol", "broker", "gpu_worker", "client", "cli", "gateway")
COMMANDS = {
    "imagegen": "imagegen_cli.main",
    "imagegen-broker": "imagegen_broker.cli",
    "imagegen-worker": "imagegen_worker.cli",
    "imagegen-gateway": "imagegen_gateway.cli",
}
BROKER, ONE, TWO = "imagegen-broker.service", "imagegen-worker@0.service", "imagegen-worker@1.service"
WORKERS = "imagegen-workers.target"
GATEWAY = "imagegen-gateway.service"
INSTALL = ("/opt/python/bin/python3", "/opt/source/systemd/install.py", "install", "--gpus", "0,1")
SETTINGS = """
backend = "simulated"
max_batch_size = 4
simulated_batch_seconds = 0.1
simulated_image_seconds = 0.05
"""


def create_environment(folder):
    """Create /opt/imagegen: an environment with this checkout and the packages of the tests' Python."""
    binaries = folder / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python3").symlink_to("/opt/python/bin/python3")
    for name, module in COMMANDS.items():
        script = binaries / name
        # The units can't see the original path of Python's library, and would find that of another version.
        script.write_text(
            "#!/bin/sh\nLD_LIBRARY_PATH=/opt/python/lib exec /opt/imagegen/bin/python3 "
            f"-c 'from {module} import main; main()' \"$@\"\n"
        )
        script.chmod(0o755)
    (folder / "pyvenv.cfg").write_text("home = /opt/python/bin\n")
    site = folder / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    site.mkdir(parents=True)
    site.joinpath("checkout.pth").write_text(
        "".join(f"/opt/source/{name}\n" for name in PACKAGES) + "/opt/packages\n"
    )
    for place in [folder, *folder.rglob("*")]:
        if place.is_dir():
            place.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A host on which the fleet is installed, with settings for simulated workers."""
    folder = tmp_path_factory.mktemp("machine")
    shown = {
        "/opt/python": Path(sys.base_prefix),
        "/opt/packages": Path(sysconfig.get_path("purelib")),
        "/opt/source": REPOSITORY,
        "/opt/imagegen": create_environment(folder / "imagegen"),
    }
    with Machine(folder, shown) as machine:
        machine.write("/etc/imagegen/worker.toml", SETTINGS)
        machine.write("/etc/imagegen/broker.toml", "heartbeat_interval = 0.25\n")
        machine.run(*INSTALL)
        yield machine


@pytest.fixture
def fleet(machine):
    """The machine, with a broker and two workers that are ready."""
    machine.run("systemctl", "start", BROKER, ONE, TWO, check=False)
    for unit in (BROKER, ONE, TWO):
        machine.wait_until(unit, timeout=60, ActiveState="active")
    yield machine
    machine.run("sh", "-c", "rm -rf /run/systemd/system/imagegen-* /etc/imagegen/worker.env")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "stop", BROKER, ONE, TWO)
    machine.run("systemctl", "reset-failed")


def drop_in(machine, unit, text):
    machine.write(f"/run/systemd/system/{unit}.d/test.conf", text)
    machine.run("systemctl", "daemon-reload")


def imagegen(machine, *words):
    """Return the command that runs `imagegen` on the machine."""
    return [*machine.enter(), "/opt/imagegen/bin/imagegen", *words]


class Burst:
    """A burst of requests, run in the background."""

    def __init__(self, machine, count, *words):
        command = imagegen(machine, "bench", "--json", "--burst", str(count), *words)
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.count = count

    def check_success(self):
        output, _ = self.process.communicate(timeout=120)
        journal = json.loads(output)
        assert (journal["successful"], journal["failed"]) == (self.count, 0)


def wait_for_load(machine, unit):
    """Wait until the broker's statistics show a running request at a worker."""
    pid = int(machine.show(unit)["MainPID"])
    script = "import urllib.request as r; print(r.urlopen('http://127.0.0.1:8080/stats').read().decode())"
    while True:
        stats = json.loads(machine.run("/opt/python/bin/python3", "-c", script))
        if any(gpu["pid"] == pid and gpu["running"] for gpu in stats["per_gpu_stats"]):
            return


def kill(machine, unit, number):
    machine.run("systemctl", "kill", "--kill-whom=main", f"--signal={number}", unit)


def test_systemd_analyze_accepts_the_units(machine):
    units = [f"/usr/local/lib/systemd/system/{unit}" for unit in (BROKER, "imagegen-worker@.service", WORKERS)]
    done = subprocess.run(
        [*machine.enter(), "systemd-analyze", "verify", *units], capture_output=True, text=True, check=True
    )
    assert done.stdout + done.stderr == ""
    for unit, most in ((BROKER, 20), (ONE, 45)):
        words = ["systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={most}"]
        path = f"/tmp/{unit}"
        machine.run("cp", units[0] if unit == BROKER else units[1], path)
        assert "Overall exposure level" in machine.run(*words, path)


def test_a_repeated_installation_changes_nothing_and_keeps_the_settings(machine):
    would = machine.run(*INSTALL, "--dry-run")
    assert "would write" not in would
    assert "kept /etc/imagegen/worker.toml" in would
    assert "wrote" not in machine.run(*INSTALL)
    assert machine.run("cat", "/etc/imagegen/worker.toml") == SETTINGS
    output = machine.run(*INSTALL[:3], "--dry-run")
    assert f"no GPU found; enabled workers: {ONE} {TWO}\n" in output, (
        "the installer queries the worker's command for GPUs"
    )
    assert f"would run systemctl enable {BROKER} {WORKERS} {ONE} {TWO}\n" in output
    enabled = machine.run("systemctl", "is-enabled", BROKER, WORKERS, ONE, TWO).split()
    assert enabled == ["enabled"] * 4


def test_a_burst_is_served_and_shown_in_the_status(fleet):
    Burst(fleet, 20).check_success()
    shown = fleet.show(ONE)
    assert (shown["ActiveState"], shown["SubState"], shown["User"]) == ("active", "running", "imagegen")
    assert shown["StatusText"].startswith("simulated on simulated")
    fleet.wait_until(BROKER, StatusText=r"\d workers, \d clients, depth \d+ \(\d+ queued, .* answers/s")


def test_killed_workers_and_brokers_are_restarted_and_no_request_is_lost(fleet):
    burst = Burst(fleet, 80)
    wait_for_load(fleet, ONE)
    before = {unit: fleet.show(unit)["MainPID"] for unit in (ONE, BROKER)}
    kill(fleet, ONE, "SIGKILL")
    fleet.wait_until(ONE, NRestarts="1", ActiveState="active")
    kill(fleet, BROKER, "SIGKILL")
    fleet.wait_until(BROKER, NRestarts="1", ActiveState="active")
    burst.check_success()
    assert all(fleet.show(unit)["MainPID"] != pid for unit, pid in before.items())


def test_the_watchdog_restarts_a_worker_whose_device_hangs(fleet):
    fleet.run("systemctl", "stop", TWO)
    fleet.write("/etc/imagegen/worker.env", "IMAGEGEN_WORKER_SIMULATED_FAIL=hang-on:hang\n")
    drop_in(fleet, ONE, "[Service]\nWatchdogSec=2\n")
    fleet.run("systemctl", "restart", ONE)
    fleet.run("rm", "/etc/imagegen/worker.env")  # the next start has no injected fault
    burst = Burst(fleet, 1, "--prompt", "please hang")
    fleet.wait_until(ONE, NRestarts="1", ActiveState="active")
    burst.check_success()
    journal = "\n".join(fleet.journal(ONE))
    assert "Watchdog timeout" in journal
    assert "simulated.py" in journal, "the traceback shows where the device thread hung"


def test_the_watchdog_restarts_a_broker_whose_loop_hangs(fleet):
    drop_in(fleet, BROKER, "[Service]\nWatchdogSec=2\n")
    fleet.run("systemctl", "restart", BROKER)
    burst = Burst(fleet, 80)
    wait_for_load(fleet, ONE)
    kill(fleet, BROKER, "SIGSTOP")
    fleet.wait_until(BROKER, NRestarts="1", ActiveState="active")
    burst.check_success()
    assert any("Watchdog timeout" in line for line in fleet.journal(BROKER))


def test_the_broker_writes_a_targets_file_that_prometheus_can_read(fleet):
    for example, unit in (("broker-metrics", BROKER), ("worker-metrics", "imagegen-worker@.service")):
        text = fleet.run("cat", f"/usr/local/share/doc/imagegen/{example}.conf")
        drop_in(fleet, unit, text)
    fleet.run("systemctl", "restart", BROKER, ONE, TWO)
    # Prometheus may run as the user `nobody`.
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    end = time.monotonic() + 30
    output = ""
    while output.count("127.0.0.1:") < 2:
        output = fleet.run(*nobody, "cat", "/var/lib/imagegen-broker/targets.json", check=False)
        assert time.monotonic() < end, output
        threading.Event().wait(0.1)
    (group,) = json.loads(output)
    assert group["targets"] == ["127.0.0.1:9100", "127.0.0.1:9101"]


def test_stopping_a_worker_under_load_drains_it(fleet):
    burst = Burst(fleet, 80)
    wait_for_load(fleet, ONE)
    fleet.run("systemctl", "stop", ONE)
    shown = fleet.show(ONE)
    assert (shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]) == ("inactive", "success", "0")
    assert any(re.search(r"\bdrained unacknowledged=0\b", line) for line in fleet.journal(ONE))
    burst.check_success()


def test_workers_may_start_before_their_broker(fleet):
    fleet.run("systemctl", "stop", BROKER, WORKERS)
    fleet.wait_until(TWO, ActiveState="inactive")  # stopping the target stops its workers
    fleet.run("systemctl", "start", WORKERS)
    for unit in (ONE, TWO):
        fleet.wait_until(unit, ActiveState="active")
    fleet.run("systemctl", "start", BROKER)
    Burst(fleet, 10).check_success()


HOLD = """
import socket, sys
with socket.create_server(("127.0.0.1", 8080)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_broker_is_restarted_until_its_address_is_free(fleet):
    fleet.run("systemctl", "stop", BROKER)
    words = [*fleet.enter(), "env", "LD_LIBRARY_PATH=/opt/python/lib", "/opt/python/bin/python3", "-c", HOLD]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        fleet.run("systemctl", "start", "--no-block", BROKER)
        fleet.wait_until(BROKER, NRestarts="[2-9]|[1-9][0-9]+", ExecMainStatus="71")
    fleet.wait_until(BROKER, ActiveState="active")
    Burst(fleet, 10).check_success()


def test_a_worker_with_an_invalid_setting_is_not_restarted(fleet):
    fleet.write("/etc/imagegen/worker.env", "MAX_BATCH_SIZE=0\n")
    fleet.run("systemctl", "restart", ONE, check=False)
    shown = fleet.wait_until(ONE, ActiveState="failed", ExecMainStatus="2")
    assert shown["NRestarts"] == "0"
    assert any("max_batch_size" in line and "MAX_BATCH_SIZE" in line for line in fleet.journal(ONE))


def test_keys_are_credentials_and_a_reload_admits_new_ones(fleet):
    keys = "/etc/imagegen/keys"
    fleet.run(*INSTALL, "--roles", "gateway")
    for name, place in (
        ("broker", keys),
        ("worker", keys),
        ("gateway", keys),
        ("early", "/srv/keys"),
        ("late", "/srv/keys"),
    ):
        fleet.run("/opt/imagegen/bin/imagegen", "keygen", name, "--out", place)
    fleet.run("cp", f"{keys}/worker.key", f"{keys}/workers/")
    fleet.run("cp", "/srv/keys/early.key", f"{keys}/gateway.key", f"{keys}/clients/")
    for unit, example in (
        (BROKER, "broker-keys"),
        ("imagegen-worker@.service", "worker-keys"),
        (GATEWAY, "gateway-keys"),
    ):
        text = fleet.run("cat", f"/usr/local/share/doc/imagegen/{example}.conf")
        drop_in(fleet, unit, text)
    fleet.run("systemctl", "restart", BROKER, ONE, TWO, GATEWAY)
    assert fleet.run("stat", "-c", "%U %a", f"{keys}/broker.key_secret") == "root 600\n"

    def key_options(name):
        return ("--key", f"/srv/keys/{name}.key_secret", "--broker-key", f"{keys}/broker.key")

    Burst(fleet, 4, *key_options("early")).check_success()
    fleet.run("cp", "/srv/keys/late.key", f"{keys}/clients/")
    fleet.run("systemctl", "reload", BROKER)
    Burst(fleet, 4, *key_options("late")).check_success()
    assert request_gateway(fleet, "/stats")["num_gpus"], "the gateway is authorized"
    fleet.run("systemctl", "stop", GATEWAY)


def request_gateway(machine, path, body=None):
    """Send a request to the gateway on the machine; return the parsed response."""
    sent = None if body is None else json.dumps(body).encode()
    script = (
        "import urllib.request as r; "
        f"q = r.Request('http://127.0.0.1:8000{path}', {sent!r}, {{'Content-Type': 'application/json'}}); "
        "print(r.urlopen(q).read().decode())"
    )
    return json.loads(machine.run("/opt/python/bin/python3", "-c", script))


def test_a_killed_gateway_is_restarted_and_its_jobs_end(fleet):
    fleet.run(*INSTALL, "--roles", "gateway")
    unit = f"/usr/local/lib/systemd/system/{GATEWAY}"
    assert fleet.run("systemd-analyze", "verify", unit) == ""
    fleet.run("cp", unit, f"/tmp/{GATEWAY}")
    fleet.run("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", f"/tmp/{GATEWAY}")
    fleet.run("systemctl", "start", GATEWAY)
    before = fleet.show(GATEWAY)["MainPID"]
    jobs = [request_gateway(fleet, "/v1/jobs", {"prompt": "x", "size": "64x64", "n": 16})["id"] for _ in range(4)]
    kill(fleet, GATEWAY, 9)
    fleet.wait_until(GATEWAY, timeout=60, ActiveState="active", NRestarts="1")
    assert fleet.show(GATEWAY)["MainPID"] != before
    for job in jobs:
        while (found := request_gateway(fleet, f"/v1/jobs/{job}"))["state"] in ("queued", "running"):
            pass
        assert found["state"] == "succeeded"
    fleet.run("systemctl", "stop", GATEWAY)
    assert fleet.show(GATEWAY)["Result"] == "success"


def test_uninstalling_keeps_only_the_settings(machine):
    uninstall = (*INSTALL[:2], "uninstall")
    assert "would remove" in machine.run(*uninstall, "--dry-run")
    machine.run("systemctl", "start", BROKER, ONE)
    machine.run(*uninstall)
    known = machine.run("systemctl", "list-unit-files", "--no-pager", "imagegen*", check=False)
    assert "0 unit files" in known
    assert "imagegen" not in machine.run("systemctl", "list-units", "--no-pager", "--plain", "imagegen-worker*")
    assert machine.run("cat", "/etc/imagegen/worker.toml") == SETTINGS
    machine.run(*uninstall, "--purge")
    assert machine.run("ls", "/etc/imagegen", check=False) == ""
    machine.run(*INSTALL)

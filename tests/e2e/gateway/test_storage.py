"""Full disks, corrupt and locked databases: clear errors, and no lost jobs."""

import resource
import sqlite3
from contextlib import closing, contextmanager

from tests.e2e.conftest import command
from tests.waiting import wait_until

BODY = {"prompt": "x", "size": "64x64"}


@contextmanager
def full_disk(gateway):
    """Prevent the gateway from writing to files during the block."""
    pid = gateway.fleet.processes[gateway.name].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def is_idle(statistics):
    return not statistics["queued_requests"] and not statistics["requests"]["dispatched"]


def test_requests_without_storage_succeed_while_the_disk_is_full(gateway, broker_client):
    accepted = gateway.job(prompt="before", num_inference_steps=20)
    with full_disk(gateway):
        rejected = gateway.http.post("/v1/jobs", json=BODY)
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (503, "storage_failed")
        assert rejected.headers["Retry-After"] == "10"
        by_url = gateway.http.post("/v1/images/generations", json={**BODY, "response_format": "url"})
        assert (by_url.status_code, by_url.json()["error"]["code"]) == (503, "storage_failed")
        assert gateway.http.post("/v1/images/generations", json=BODY).status_code == 200
        assert gateway.http.get("/healthz").status_code == 200
        wait_until(lambda: is_idle(broker_client.stats()), "the broker has no requests")
        assert gateway.http.get(f"/v1/jobs/{accepted['id']}").json()["finished_at"] is None
    assert gateway.wait(accepted["id"])["state"] == "succeeded"
    assert gateway.job(prompt="after")["state"] == "queued"


def start(fleet, folder):
    """Run the gateway; return its exit code and its stderr."""
    arguments = ("--http", "127.0.0.1:0", "--broker", fleet.frontend, "--state-folder", str(folder))
    ended = command("imagegen-gateway", *arguments, check=False)
    return ended.returncode, ended.stderr


def test_a_corrupt_database_is_reported_at_the_start(fleet, tmp_path):
    (tmp_path / "gateway.sqlite").write_bytes(b"this is no database " * 1000)
    status, stderr = start(fleet, tmp_path)
    assert status == 2
    assert "gateway.sqlite: file is not a database" in stderr
    assert "Traceback" not in stderr


def test_a_database_of_a_later_version_is_rejected(fleet, tmp_path):
    command("imagegen-gateway", "--state-folder", str(tmp_path), "keys", "list")
    with closing(sqlite3.connect(tmp_path / "gateway.sqlite")) as later:
        later.execute("PRAGMA user_version = 99")
    status, stderr = start(fleet, tmp_path)
    assert status == 2
    assert "has schema version 99" in stderr


def test_the_gateway_waits_for_a_locked_database(gateway):
    other = sqlite3.connect(gateway.folder / "gateway.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert gateway.http.post("/v1/images/generations", json=BODY).status_code == 200, "reads need no lock"
    other.execute("COMMIT")
    other.close()
    assert gateway.wait(gateway.job(prompt="x")["id"])["state"] == "succeeded"


def test_file_names_can_not_leave_the_folder(gateway):
    for name in (
        "../gateway.sqlite",
        "..%2fgateway.sqlite",
        "%2e%2e/gateway.sqlite",
        "x" * 32 + ".png",
        "a/b.png",
    ):
        assert gateway.http.get(f"/v1/files/{name}").status_code in (404, 400), name
    for path in ("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py"):
        assert gateway.http.get(path).status_code == 404, path


def test_metrics_do_not_contain_prompts_or_paths(gateway):
    assert gateway.wait(gateway.job(prompt="a secret prompt")["id"])["state"] == "succeeded"
    gateway.http.get("/a-secret-path?prompt=secret")
    text = gateway.http.get("/metrics").text
    assert "imagegen_gateway_jobs_ended_total" in text
    assert "secret" not in text


def modes(folder):
    """Return the modes of a folder and all files in it, by name."""
    return {path.name: oct(path.stat().st_mode & 0o777) for path in (folder, *folder.rglob("*"))}


def test_only_the_owner_can_read_the_state_folder(start_gateway):
    gateway = start_gateway()
    assert gateway.wait(gateway.job(prompt="x")["id"])["state"] == "succeeded"
    found = modes(gateway.folder)
    assert {"gateway.sqlite", "gateway.sqlite-wal", "lock", "results"} <= found.keys()
    folders = {gateway.folder.name, "results"}
    assert found == {name: "0o700" if name in folders else "0o600" for name in found}


def test_the_commands_for_keys_create_a_private_folder(tmp_path):
    folder = tmp_path / "state"
    command("imagegen-gateway", "--state-folder", str(folder), "keys", "add", "alice")
    assert modes(folder) == {"state": "0o700", "gateway.sqlite": "0o600"}


def test_a_state_folder_that_others_can_read_is_corrected_at_the_start(fleet, start_gateway):
    gateway = start_gateway()
    gateway.kill()
    for path in (gateway.folder, *gateway.folder.iterdir()):
        path.chmod(0o755)
    gateway.start()
    assert {mode[-2:] for mode in modes(gateway.folder).values()} == {"00"}
    log = (fleet._log_folder / f"{gateway.name}.log").read_text()
    assert f"permissions of other users removed path={gateway.folder}/gateway.sqlite mode=755" in log

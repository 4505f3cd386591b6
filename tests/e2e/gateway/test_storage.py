"""A disk that is full, files that are broken: said, and nothing that was accepted is lost."""

import resource
import sqlite3
import time
from contextlib import closing, contextmanager

from tests.e2e.conftest import command

ASKED = {"prompt": "x", "size": "64x64"}


@contextmanager
def full_disk(gateway):
    """Let the gateway write to no file for a while."""
    pid = gateway.fleet.processes[gateway.name].pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_while_the_disk_is_full_what_needs_none_goes_on(gateway, broker_client):
    accepted = gateway.job(prompt="before", num_inference_steps=20)
    with full_disk(gateway):
        refused = gateway.http.post("/v1/jobs", json=ASKED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_failed")
        assert refused.headers["Retry-After"] == "10"
        by_url = gateway.http.post("/v1/images/generations", json={**ASKED, "response_format": "url"})
        assert (by_url.status_code, by_url.json()["error"]["code"]) == (503, "storage_failed")
        assert gateway.http.post("/v1/images/generations", json=ASKED).status_code == 200
        assert gateway.http.get("/healthz").status_code == 200
        while broker_client.stats()["queued_requests"] or broker_client.stats()["requests"]["dispatched"]:
            time.sleep(0.1)
        assert gateway.http.get(f"/v1/jobs/{accepted['id']}").json()["finished_at"] is None
    assert gateway.ended(accepted["id"])["state"] == "succeeded"
    assert gateway.job(prompt="after")["state"] == "queued"


def start(fleet, folder):
    """Run the gateway; return its status and what it said."""
    words = ("--http", "127.0.0.1:0", "--broker", fleet.frontend, "--state-folder", str(folder))
    ended = command("imagegen-gateway", *words, check=False)
    return ended.returncode, ended.stderr


def test_a_broken_database_is_named_at_the_start(fleet, tmp_path):
    (tmp_path / "gateway.sqlite").write_bytes(b"this is no database " * 1000)
    status, said = start(fleet, tmp_path)
    assert status == 2
    assert "gateway.sqlite: file is not a database" in said
    assert "Traceback" not in said


def test_a_database_of_a_later_version_is_left_alone(fleet, tmp_path):
    command("imagegen-gateway", "--state-folder", str(tmp_path), "keys", "list")
    with closing(sqlite3.connect(tmp_path / "gateway.sqlite")) as later:
        later.execute("PRAGMA user_version = 99")
    status, said = start(fleet, tmp_path)
    assert status == 2
    assert "is of version 99" in said


def test_a_database_that_is_locked_is_waited_for(gateway):
    other = sqlite3.connect(gateway.folder / "gateway.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert gateway.http.post("/v1/images/generations", json=ASKED).status_code == 200, "reading needs no lock"
    other.execute("COMMIT")
    other.close()
    assert gateway.ended(gateway.job(prompt="x")["id"])["state"] == "succeeded"


def test_names_of_files_lead_nowhere_else(gateway):
    for name in (
        "../gateway.sqlite",
        "..%2fgateway.sqlite",
        "%2e%2e/gateway.sqlite",
        "x" * 32 + ".png",
        "a/b.png",
    ):
        assert gateway.http.get(f"/v1/files/{name}").status_code in (404, 422), name
    for path in ("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/app.py"):
        assert gateway.http.get(path).status_code == 404, path


def test_metrics_tell_nothing_of_what_was_asked(gateway):
    assert gateway.ended(gateway.job(prompt="a secret wish")["id"])["state"] == "succeeded"
    gateway.http.get("/a-secret-path?prompt=secret")
    text = gateway.http.get("/metrics").text
    assert "imagegen_gateway_jobs_ended_total" in text
    assert "secret" not in text

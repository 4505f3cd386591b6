"""Jobs: creation, progress, cancellation, expiry, and resumption after a crash of the gateway."""

import base64
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.e2e.conftest import command
from tests.e2e.gateway.conftest import SLOW, read_events


@pytest.fixture(scope="module")
def worker_options():
    return SLOW


def wait_until_running(fleet, gateway, job_id):
    fleet.wait_until(lambda: gateway.http.get(f"/v1/jobs/{job_id}").json()["state"] != "queued", "a running job")


def all_jobs(gateway):
    return gateway.http.get("/v1/jobs", params={"limit": 100}).json()["data"]


def test_a_job_reports_progress_and_ends_with_images(gateway):
    job = gateway.job(prompt="a red circle", n=2, seed=5, model="simulated")
    assert (job["state"], job["seed"], job["n"], job["images"]) == ("queued", 5, 2, None)
    events = gateway.events(job["id"])
    names = [name for name, _ in events]
    assert names[-1] == "done"
    assert "running" in names
    assert sorted(names, key=["queued", "running", "done"].index) == names
    steps = [data["step"] for name, data in events if name == "running"]
    assert steps == sorted(steps)
    assert any(data["preview"] and data["preview"].startswith("data:image/") for _, data in events)
    ended = events[-1][1]
    assert ended["state"] == "succeeded"
    assert [image["seed"] for image in ended["images"]] == [5, 6]
    for image in ended["images"]:
        fetched = gateway.http.get(image["url"])
        assert Image.open(io.BytesIO(fetched.content)).size == (image["width"], image["height"]) == (64, 64)
    assert gateway.http.get(f"/v1/jobs/{job['id']}").json()["images"] == ended["images"]
    assert gateway.events(job["id"])[0][0] == "done", "late followers receive the end"


def test_a_queued_job_reports_its_queue_position(fleet, gateway):
    jobs = [gateway.job(prompt=f"number {i}") for i in range(20)]
    places = [data["place"] for name, data in gateway.events(jobs[-1]["id"]) if name == "queued"]
    assert any(place is not None and place > 0 for place in places)


def test_a_job_with_an_input_image(gateway, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (10, 200, 10)).save(buffer, format="PNG")
    image = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    response = gateway.http.post("/v1/jobs", json={"prompt": "x", "image": image, "strength": 0.5})
    ended = gateway.wait(response.json()["id"])
    assert (ended["state"], ended["images"][0]["width"]) == ("succeeded", 48)
    stored = {path.name for path in (gateway.folder / "results").iterdir()}
    assert stored == {ended["images"][0]["url"].rpartition("/")[2]}, "the input image is deleted"


def test_a_job_with_reference_images(gateway):
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), (10, 200, 10)).save(buffer, format="PNG")
    image = base64.b64encode(buffer.getvalue()).decode()
    response = gateway.http.post("/v1/jobs", json={"prompt": "x", "images": [image, image], "size": "64x64"})
    ended = gateway.wait(response.json()["id"])
    assert (ended["state"], ended["images"][0]["width"]) == ("succeeded", 64)
    refused = gateway.http.post("/v1/jobs", json={"prompt": "x", "images": [image], "image": image})
    assert refused.json()["error"]["message"] == "images: expected no image beside them, got 1 images"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "prompt: required, but missing"),
        ({"prompt": "x", "image": "???"}, 400, "image: expected an image as base64 or a data: URL"),
        ({"prompt": "x", "image": "AAAA"}, 400, "image: expected a PNG, JPEG or WebP image, got 3 bytes of"),
        ({"prompt": "x", "strength": 0.5}, 400, "strength: expected only with an image"),
        ({"prompt": "x", "stream": True}, 400, "stream: unknown field"),
        ({"prompt": "x", "webhook_url": "ftp://x"}, 400, "webhook_url: string should match pattern"),
    ],
)
def test_invalid_jobs_are_rejected(gateway, body, status, message):
    response = gateway.http.post("/v1/jobs", json=body)
    assert (response.status_code, response.json()["error"]["message"][: len(message)]) == (status, message)
    assert all_jobs(gateway) == []


def test_a_failed_job_has_an_error(gateway):
    ended = gateway.wait(gateway.job(prompt="x", model="nope")["id"])
    assert (ended["state"], ended["error"]["code"], ended["images"]) == ("failed", "model_not_found", None)


def test_a_job_fails_after_its_timeout(gateway):
    ended = gateway.wait(gateway.job(prompt="x", timeout_seconds=0.000001)["id"])
    assert (ended["state"], ended["error"]["code"]) == ("failed", "deadline_exceeded")


def test_a_running_job_is_cancelled(fleet, gateway, broker_client):
    job = gateway.job(prompt="x")
    wait_until_running(fleet, gateway, job["id"])
    before = broker_client.stats()["totals"]["answered"].get("cancelled", 0)
    assert gateway.http.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    assert gateway.wait(job["id"])["state"] == "cancelled"
    fleet.wait_until(
        lambda: broker_client.stats()["totals"]["answered"].get("cancelled", 0) > before,
        "the cancellation at the worker",
    )
    assert gateway.http.delete(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"


def test_an_ended_job_is_not_changed_by_cancelling(gateway):
    job = gateway.job(prompt="x")
    ended = gateway.wait(job["id"])
    again = gateway.http.delete(f"/v1/jobs/{job['id']}").json()
    assert (again["state"], again["images"]) == ("succeeded", ended["images"])


def test_an_idempotency_key_returns_the_existing_job(gateway):
    def send(**body):
        return gateway.http.post("/v1/jobs", json={"size": "64x64", **body}, headers={"Idempotency-Key": "one"})

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: send(prompt="x"), range(8)))
    assert sorted(response.status_code for response in responses) == [200] * 7 + [202]
    assert len({response.json()["id"] for response in responses}) == 1
    assert len(all_jobs(gateway)) == 1
    other = send(prompt="y")
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    gateway.restart()
    assert send(prompt="x").json()["id"] == responses[0].json()["id"]


def test_the_list_of_jobs_is_paginated(gateway):
    ids = [gateway.job(prompt=f"number {i}")["id"] for i in range(5)]
    first = gateway.http.get("/v1/jobs", params={"limit": 3}).json()
    assert ([job["id"] for job in first["data"]], first["has_more"]) == (ids[:1:-1], True)
    rest = gateway.http.get("/v1/jobs", params={"limit": 3, "after": ids[2]}).json()
    assert ([job["id"] for job in rest["data"]], rest["has_more"]) == (ids[1::-1], False)
    unknown = {"after": "job_" + 32 * "0"}
    assert gateway.http.get("/v1/jobs", params=unknown).status_code == 404


def test_jobs_survive_a_killed_gateway(fleet, gateway, broker_client):
    jobs = [gateway.job(prompt=f"number {i}", seed=i) for i in range(12)]
    wait_until_running(fleet, gateway, jobs[0]["id"])
    gateway.kill()
    gateway.start()
    ended = [gateway.wait(job["id"]) for job in jobs]
    assert {job["state"] for job in ended} == {"succeeded"}
    assert [job["images"][0]["seed"] for job in ended] == list(range(12))
    assert [job["id"] for job in all_jobs(gateway)] == [job["id"] for job in jobs][::-1]
    stored = sorted(path.name for path in (gateway.folder / "results").iterdir())
    assert stored == sorted(job["images"][0]["url"].rpartition("/")[2] for job in ended), (
        "exactly one file per image"
    )


def test_jobs_survive_repeated_crashes(fleet, gateway):
    jobs = [gateway.job(prompt=f"number {i}") for i in range(6)]
    for _ in range(3):
        wait_until_running(fleet, gateway, jobs[0]["id"])
        gateway.restart()
    assert {gateway.wait(job["id"])["state"] for job in jobs} == {"succeeded"}


def test_jobs_survive_a_shutdown(fleet, gateway):
    job = gateway.job(prompt="x")
    wait_until_running(fleet, gateway, job["id"])
    assert fleet.terminate(gateway.name) == 0
    gateway.start()
    assert gateway.wait(job["id"])["state"] == "succeeded"


def test_event_streams_end_when_the_gateway_shuts_down(fleet, gateway):
    job = [gateway.job(prompt=f"number {i}") for i in range(40)][-1]
    with gateway.http.stream("GET", f"/v1/jobs/{job['id']}/events") as response:
        events = read_events(response)
        assert next(events)[0] == "queued"
        assert fleet.terminate(gateway.name, timeout=20) == 0
        assert "done" not in [name for name, _ in events]
    gateway.start()


def test_results_expire(start_gateway, fleet):
    gateway = start_gateway("--results-kept", "1")
    job = gateway.wait(gateway.job(prompt="x")["id"])
    url = job["images"][0]["url"]
    fleet.wait_until(lambda: gateway.http.get(url).status_code == 404, "the expiry of the image")
    gateway.restart()  # expired files are deleted at the start
    fleet.wait_until(lambda: not list((gateway.folder / "results").iterdir()), "an empty folder")
    assert gateway.http.get(f"/v1/jobs/{job['id']}").status_code == 404


def test_the_number_of_unfinished_jobs_is_limited(start_gateway):
    gateway = start_gateway("--max-jobs", "1")
    gateway.job(prompt="x")
    response = gateway.http.post("/v1/jobs", json={"prompt": "y"})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "too_many_jobs")
    assert int(response.headers["retry-after"]) > 0


def test_a_second_gateway_with_the_same_state_folder_is_rejected(fleet, gateway):
    arguments = ("imagegen-gateway", "--http", "127.0.0.1:0", "--state-folder", str(gateway.folder))
    ended = command(*arguments, check=False)
    assert ended.returncode == 2
    assert f"another gateway uses {gateway.folder}" in ended.stderr


def test_results_are_stored_at_the_configured_url(start_gateway):
    gateway = start_gateway("--results-url", "memory://images")
    job = gateway.wait(gateway.job(prompt="x")["id"])
    assert gateway.http.get(job["images"][0]["url"]).headers["content-type"] == "image/png"
    assert not (gateway.folder / "results").exists()

"""Images in a bucket: kept, fetched, expired, and there for the next gateway."""

import base64
import time

import fsspec
import httpx2
import pytest

from tests.e2e.gateway.conftest import Gateway

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

FOLDER = "pictures/made"


@pytest.fixture(scope="module")
def s3():
    """A server that speaks S3."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """The name of a bucket, and what lies in it."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    files.mkdir("pictures")
    yield files
    files.rm("pictures", recursive=True)


def names(bucket):
    """What lies in the folder."""
    return [path.rpartition("/")[2] for path in bucket.find(FOLDER)]


def test_jobs_and_images_in_a_bucket_outlive_the_gateway(start_gateway, bucket):
    gateway = start_gateway("--results-url", f"s3://{FOLDER}")
    job = gateway.ended(gateway.job(prompt="a red circle", n=2)["id"])
    assert job["state"] == "succeeded"
    assert sorted(names(bucket)) == sorted(image["url"].rpartition("/")[2] for image in job["images"])
    paths = [image["url"].removeprefix(gateway.url) for image in job["images"]]
    made = [gateway.http.get(path).content for path in paths]
    assert all(content.startswith(b"\x89PNG") for content in made)
    waiting = gateway.job(prompt="a blue circle", image=base64.b64encode(made[0]).decode())
    gateway.restart()
    assert [gateway.http.get(path).content for path in paths] == made
    assert gateway.ended(waiting["id"])["state"] == "succeeded"
    assert not [name for name in names(bucket) if name.endswith("-image")], "what it started from is gone"


def test_what_has_expired_is_removed_from_the_bucket(fleet, bucket, tmp_path):
    arguments = ("--results-url", f"s3://{FOLDER}", "--results-kept", "1")
    gateway = Gateway(fleet, "short", tmp_path / "state", arguments)
    answer = gateway.http.post(
        "/v1/images/generations", json={"prompt": "x", "size": "64x64", "response_format": "url"}
    )
    url = answer.json()["data"][0]["url"]
    assert len(names(bucket)) == 1
    while httpx2.get(url, trust_env=False).status_code == 200:
        time.sleep(0.1)
    gateway.restart()  # which looks at once
    while names(bucket):
        time.sleep(0.1)
    gateway.close()
    assert fleet.terminate("short") == 0


def test_a_store_that_is_away_fails_no_job(start_gateway, bucket, broker_client):
    gateway = start_gateway("--results-url", f"s3://{FOLDER}")
    bucket.rm("pictures", recursive=True)
    made = broker_client.stats()["totals"]["answered"].get("result", 0)
    job = gateway.job(prompt="a green circle")
    while broker_client.stats()["totals"]["answered"].get("result", 0) == made:
        time.sleep(0.1)
    while gateway.http.get(f"/v1/jobs/{job['id']}").json()["state"] == "queued":
        time.sleep(0.1)
    assert gateway.http.get(f"/v1/jobs/{job['id']}").json()["finished_at"] is None
    bucket.mkdir("pictures")
    assert gateway.ended(job["id"])["state"] == "succeeded"

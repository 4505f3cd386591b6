"""Images in an S3 bucket: storage, expiry, restarts and outages."""

import base64

import fsspec
import httpx2
import pytest

from tests.e2e.gateway.conftest import Gateway
from tests.waiting import wait_until

pytest.importorskip("s3fs")
moto = pytest.importorskip("moto.server")

FOLDER = "images/results"


@pytest.fixture(scope="module")
def s3():
    """The URL of a local S3 server."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3, monkeypatch):
    """The file system of an empty bucket."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    files = fsspec.filesystem("s3", use_listings_cache=False, skip_instance_cache=True)
    files.mkdir("images")
    yield files
    files.rm("images", recursive=True)


def names(bucket):
    """Return the names of the files in the folder."""
    return [path.rpartition("/")[2] for path in bucket.find(FOLDER)]


def test_jobs_and_images_in_a_bucket_survive_a_restart(start_gateway, bucket):
    gateway = start_gateway("--results-url", f"s3://{FOLDER}")
    job = gateway.wait(gateway.job(prompt="a red circle", n=2)["id"])
    assert job["state"] == "succeeded"
    assert sorted(names(bucket)) == sorted(image["url"].rpartition("/")[2] for image in job["images"])
    paths = [image["url"].removeprefix(gateway.url) for image in job["images"]]
    images = [gateway.http.get(path).content for path in paths]
    assert all(content.startswith(b"\x89PNG") for content in images)
    waiting = gateway.job(prompt="a blue circle", image=base64.b64encode(images[0]).decode())
    gateway.restart()
    assert [gateway.http.get(path).content for path in paths] == images
    assert gateway.wait(waiting["id"])["state"] == "succeeded"
    assert not [name for name in names(bucket) if name.endswith("-image")], "the input image is deleted"


def test_expired_images_are_deleted_from_the_bucket(fleet, bucket, tmp_path):
    arguments = ("--results-url", f"s3://{FOLDER}", "--results-kept", "1")
    gateway = Gateway(fleet, "short", tmp_path / "state", arguments)
    response = gateway.http.post(
        "/v1/images/generations", json={"prompt": "x", "size": "64x64", "response_format": "url"}
    )
    url = response.json()["data"][0]["url"]
    assert len(names(bucket)) == 1
    wait_until(lambda: httpx2.get(url, trust_env=False).status_code != 200, "the image expires")
    gateway.restart()  # expired files are deleted at the start
    wait_until(lambda: not names(bucket), "the gateway deletes the expired image")
    gateway.close()
    assert fleet.terminate("short") == 0


def test_jobs_wait_while_the_bucket_is_unavailable(start_gateway, bucket, broker_client):
    gateway = start_gateway("--results-url", f"s3://{FOLDER}")
    bucket.rm("images", recursive=True)
    before = broker_client.stats()["totals"]["answered"].get("result", 0)
    job = gateway.job(prompt="a green circle")
    wait_until(
        lambda: broker_client.stats()["totals"]["answered"].get("result", 0) > before, "a worker answers the job"
    )
    wait_until(
        lambda: gateway.http.get(f"/v1/jobs/{job['id']}").json()["state"] != "queued", "the gateway shows the job"
    )
    assert gateway.http.get(f"/v1/jobs/{job['id']}").json()["finished_at"] is None
    bucket.mkdir("images")
    assert gateway.wait(job["id"])["state"] == "succeeded"

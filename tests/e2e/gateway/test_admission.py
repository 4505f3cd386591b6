"""Requests that would cost one key's owner little and the gateway much."""

import base64
import json
import socket
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from tests.e2e.gateway.conftest import Gateway

MAX_BODY = 8 * 1024**2


@pytest.fixture(scope="module")
def lonely(fleet):
    """The client endpoint of a broker without a worker: jobs wait there."""
    yield fleet.start_broker(name="lonely").frontend
    fleet.terminate("lonely")
    del fleet.brokers["lonely"]


@pytest.fixture(scope="module")
def gateway(fleet, lonely, tmp_path_factory):
    """A gateway that requires keys, for all tests of this file."""
    options = ("--auth", "keys", "--broker", lonely, "--max-jobs-per-key", "3")
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), options)
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


@pytest.fixture
def new_key(gateway, request):
    """A function that creates a key with these limits and returns its header."""

    def new_key(*limits, name=request.node.name, of=gateway):
        return {"Authorization": f"Bearer {of.add_key(name, *limits)}"}

    return new_key


def post(gateway, headers, **body):
    """Create a job; return the status and the error, or None."""
    response = gateway.http.post("/v1/jobs", json={"prompt": "x", **body}, headers=headers)
    return response.status_code, response.json().get("error")


class Post:
    """A request that sends its body only after the gateway has asked for it with status 100."""

    def __init__(self, gateway, headers, body, path="/v1/jobs"):
        host, port = gateway.url.removeprefix("http://").split(":")
        fields = {
            "Host": host,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Expect": "100-continue",
            **headers,
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._body = body
        self._connection = socket.create_connection((host, int(port)), timeout=60)
        self._connection.sendall(f"POST {path} HTTP/1.1\r\n{head}\r\n".encode())
        self.status = self._read_status()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._connection.close()

    def _read_status(self):
        return int(self._connection.recv(65536).split()[1])

    def finish(self):
        """Send the body; return the status of the response."""
        self._connection.sendall(self._body)
        return self._read_status()


def test_a_request_beyond_the_rate_is_rejected_before_its_body_is_read(gateway, new_key):
    headers = new_key("--requests-per-minute", "1")
    assert post(gateway, headers)[0] == 202
    for path in ("/v1/jobs", "/v1/images/generations", "/v1/images/edits"):
        with Post(gateway, headers, b"{}", path) as rejected:
            assert rejected.status == 429


def test_concurrent_requests_can_not_exceed_the_maximum_in_flight(gateway, new_key):
    headers, body = new_key("--max-in-flight", "2"), json.dumps({"prompt": "x"}).encode()
    with ExitStack() as stack:
        posts = [stack.enter_context(Post(gateway, headers, body)) for _ in range(5)]
        assert [each.status for each in posts] == [100, 100, 429, 429, 429]
        assert [each.finish() for each in posts[:2]] == [202, 202]
    assert post(gateway, headers)[0] == 429, "the jobs are in flight"


def test_an_idempotent_repetition_is_not_counted_besides_its_job(gateway, new_key):
    headers = {**new_key("--max-in-flight", "1"), "Idempotency-Key": "order-17"}
    assert [post(gateway, headers)[0] for _ in range(3)] == [202, 200, 200]
    assert post(gateway, {**headers, "Idempotency-Key": "order-18"})[0] == 429


def test_the_bodies_of_one_key_have_a_maximum_size(start_gateway, lonely, new_key):
    gateway = start_gateway("--auth", "keys", "--broker", lonely, "--max-body-bytes", str(MAX_BODY))
    alice, bob = new_key(of=gateway), new_key(of=gateway, name="bob")
    body = json.dumps({"prompt": "x"}).encode()
    body += (MAX_BODY - len(body)) * b" "
    with ExitStack() as stack:
        posts = [stack.enter_context(Post(gateway, alice, body)) for _ in range(5)]
        assert [each.status for each in posts] == [100] * 4 + [429]
        code = post(gateway, alice)[1]["code"]
        assert code == "too_many_bytes"
        assert post(gateway, bob)[0] == 202, "other keys are not affected"
        assert [each.finish() for each in posts[:4]] == [202] * 4
    assert post(gateway, alice)[0] == 202, "bodies of ended requests are not counted"


def test_the_unfinished_jobs_of_a_key_are_limited(gateway, new_key):
    headers = new_key()
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: post(gateway, headers)[0], range(8)))
    assert statuses == [202] * 3 + [429] * 5
    code = post(gateway, headers)[1]["code"]
    assert code == "too_many_jobs"
    assert post(gateway, new_key(name="bob"))[0] == 202


def test_the_image_bytes_of_a_keys_unfinished_jobs_are_limited(start_gateway, lonely, new_key):
    image = with_empty_chunks(100)
    limit = str(2 * len(image))
    gateway = start_gateway("--auth", "keys", "--broker", lonely, "--max-job-bytes-per-key", limit)
    headers, text = new_key(of=gateway), base64.b64encode(image).decode()
    assert [post(gateway, headers, image=text)[0] for _ in range(3)] == [202, 202, 429]
    gateway.restart()
    assert post(gateway, headers, image=text)[0] == 429, "resumed jobs are counted"
    assert post(gateway, headers)[0] == 202
    [job, *_] = gateway.http.get("/v1/jobs", params={"limit": 1}, headers=headers).json()["data"]
    gateway.http.delete(f"/v1/jobs/{job['id']}", headers=headers)
    assert len(list((gateway.folder / "results").iterdir())) == 2, "rejected images are deleted"


def with_empty_chunks(number):
    """Return a PNG of 8x8 pixels with many empty chunks before its pixels."""

    def chunk(kind, content):
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = chunk(b"IHDR", b"\0\0\0\x08\0\0\0\x08\x08\0\0\0\0")
    pixels = chunk(b"IDAT", zlib.compress(8 * (9 * b"\0")))
    return b"\x89PNG\r\n\x1a\n" + header + number * chunk(b"teSt", b"") + pixels + chunk(b"IEND", b"")


def test_an_image_of_millions_of_chunks_is_rejected(gateway, new_key):
    headers, image = new_key(), with_empty_chunks(1_800_000)
    for sent in (
        {"url": "/v1/images/edits", "data": {"prompt": "x"}, "files": {"image": ("a.png", image)}},
        {"url": "/v1/jobs", "json": {"prompt": "x", "image": base64.b64encode(image).decode()}},
    ):
        response = gateway.http.post(**sent, headers=headers)
        message = "image: expected a PNG with at most 16384 chunks"
        assert (response.status_code, response.json()["error"]["message"]) == (400, message)


def test_a_body_of_millions_of_fields_is_rejected(gateway, new_key):
    headers = {**new_key(), "Content-Type": "application/json"}
    fields = b",".join(b'"f%d":1' % number for number in range(1_500_000))
    for path in ("/v1/jobs", "/v1/images/generations"):
        response = gateway.http.post(path, content=b'{"prompt":"x",' + fields + b"}", headers=headers)
        message = "body: expected at most 1000 values"
        assert (response.status_code, response.json()["error"]["message"]) == (400, message)


def test_deeply_nested_and_long_json_in_a_form_is_rejected(gateway, new_key):
    headers = new_key()
    for loras in ("[" * 20_000, "[" * 20_000 + "]" * 20_000, '[{"name":' * 5000, "[" + "1," * 20_000):
        files = {"image": ("a.png", with_empty_chunks(0))}
        response = gateway.http.post(
            "/v1/images/edits", data={"prompt": "x", "loras": loras}, files=files, headers=headers
        )
        assert (response.status_code, response.json()["error"]["param"]) == (400, "loras")


def test_error_messages_are_short_whatever_they_quote(gateway, new_key):
    headers, long = new_key(), "x" * 60_000
    for body in (
        {long: 1},
        {"prompt": 1, "size": long},
        {"prompt": "x", "n": long},
        {"prompt": "x", "loras": [long]},
    ):
        response = gateway.http.post("/v1/images/generations", json=body, headers=headers)
        assert response.status_code == 400
        assert len(response.content) < 4000
    for path in (f"/v1/models/{long[:20_000]}", f"/v1/jobs?after={long[:20_000]}"):
        assert len(gateway.http.get(path, headers=headers).content) < 4000

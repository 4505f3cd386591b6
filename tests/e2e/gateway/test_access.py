"""Authentication, limits of keys, and protection from other sites' pages."""

import json
import os
import socket
import ssl
import subprocess
from contextlib import ExitStack

import httpx2
import openai
import pytest

from tests.e2e.conftest import command
from tests.programs import needs


@pytest.fixture
def guarded(start_gateway):
    """A gateway that requires keys."""
    return start_gateway("--auth", "keys")


@pytest.fixture
def lonely(fleet):
    """The client endpoint of a broker without a worker."""
    yield fleet.start_broker(name="lonely").frontend
    fleet.terminate("lonely")
    del fleet.brokers["lonely"]


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def generate(gateway, key, **body):
    response = gateway.http.post(
        "/v1/images/generations", json={"prompt": "x", "size": "64x64", **body}, headers=bearer(key)
    )
    return response.status_code, response.json().get("error", {}).get("code")


def test_a_key_is_required(guarded):
    for path in ("/v1/models", "/v1/jobs", "/stats"):
        response = guarded.http.get(path)
        assert (response.status_code, response.json()["error"]["code"]) == (401, "missing_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    with guarded.openai(key="imagegen_wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with guarded.openai(key=guarded.add_key("alice")) as client:
        assert client.images.generate(prompt="x", size="64x64").data
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert guarded.http.get(path).status_code == 200


def test_an_unknown_key_is_rejected_before_the_body_is_read(guarded):
    host, port = guarded.url.removeprefix("http://").split(":")
    head = "Content-Type: application/json\r\nContent-Length: 30000000\r\nAuthorization: Bearer imagegen_wrong"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\n{head}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_revoked_key_is_rejected_at_once(guarded):
    key = guarded.add_key("alice")
    assert generate(guarded, key)[0] == 200
    assert guarded.keys("revoke", "alice") == "revoked alice\n"
    assert generate(guarded, key) == (401, "invalid_api_key")


def test_keys_are_stored_as_hashes(guarded):
    key = guarded.add_key("alice")
    stored = b"".join(path.read_bytes() for path in guarded.folder.glob("gateway.sqlite*"))
    assert b"alice" in stored
    assert key.encode() not in stored
    assert key not in guarded.keys("list", "--json")


def test_keys_are_listed_with_their_limits(guarded):
    guarded.add_key(
        "alice", "--requests-per-minute", "30", "--max-size", "512x256", "--model", "a", "--priority", "5"
    )
    guarded.add_key("bob")
    guarded.keys("revoke", "bob")
    alice, bob = json.loads(guarded.keys("list", "--json"))
    assert (alice["name"], alice["requests_per_minute"], alice["max_width"], alice["max_height"]) == (
        "alice",
        30,
        512,
        256,
    )
    assert (alice["models"], alice["priority"], alice["revoked"]) == (["a"], 5, None)
    assert bob["revoked"] is not None
    assert "revoked" in guarded.keys("list")


def test_invalid_key_commands_are_rejected(guarded):
    guarded.add_key("alice")
    for arguments, message in (
        (("add", "alice"), "the name 'alice' is or was used by another key"),
        (("add", "everybody"), "the name 'everybody' is reserved for requests without keys"),
        (("add", " "), "expected 1 to 128 printable characters"),
        (("add", "bob", "--max-size", "big"), "expected WIDTHxHEIGHT"),
        (("revoke", "carol"), "there is no key 'carol'; existing keys: alice"),
    ):
        ended = command(
            "imagegen-gateway",
            "--state-folder",
            str(guarded.folder),
            "keys",
            *arguments,
            check=False,
            env={**os.environ, "COLUMNS": "999"},
        )
        assert ended.returncode != 0
        assert message in ended.stderr


def test_requests_beyond_the_limits_of_the_key_are_rejected(guarded):
    key = guarded.add_key(
        "alice", "--max-size", "64x32", "--max-steps", "4", "--model", "simulated", "--priority", "-5"
    )
    assert generate(guarded, key, size="64x32", num_inference_steps=4, priority=-6) == (200, None)
    for beyond in (
        {"size": "65x32"},
        {"size": "64x33"},
        {"num_inference_steps": 5},
        {"model": "other"},
        {"priority": -4},
    ):
        assert generate(guarded, key, **{"size": "64x32", **beyond}) == (403, "not_allowed"), beyond
    job = guarded.http.post("/v1/jobs", json={"prompt": "x", "size": "65x32"}, headers=bearer(key))
    assert job.status_code == 403
    assert 'imagegen_gateway_refusals_total{reason="limit"} 6.0' in guarded.http.get("/metrics").text


def test_models_outside_the_limits_of_a_key_are_not_listed(guarded):
    with guarded.openai(key=guarded.add_key("alice", "--model", "other")) as client:
        assert list(client.models.list()) == []


def test_the_rate_of_a_key_is_limited(guarded):
    key = guarded.add_key("alice", "--requests-per-minute", "2")
    assert [generate(guarded, key)[0] for _ in range(3)] == [200, 200, 429]
    response = guarded.http.post("/v1/jobs", json={"prompt": "x"}, headers=bearer(key))
    assert response.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(response.headers["retry-after"]) <= 30
    assert generate(guarded, guarded.add_key("bob"))[0] == 200, "other keys are not affected"


def test_the_number_of_requests_and_jobs_in_flight_is_limited(start_gateway, lonely):
    guarded = start_gateway("--auth", "keys", "--broker", lonely)
    key = guarded.add_key("alice", "--max-in-flight", "1")
    job = guarded.http.post("/v1/jobs", json={"prompt": "x"}, headers=bearer(key)).json()
    assert generate(guarded, key) == (429, "too_many_in_flight")
    assert guarded.http.post("/v1/jobs", json={"prompt": "y"}, headers=bearer(key)).status_code == 429
    guarded.http.delete(f"/v1/jobs/{job['id']}", headers=bearer(key))
    assert generate(guarded, key) == (503, "no_worker")
    assert generate(guarded, key) == (503, "no_worker"), "ended requests are not counted"


def test_a_job_belongs_to_its_key(guarded):
    alice, bob = guarded.add_key("alice"), guarded.add_key("bob")
    job = guarded.http.post("/v1/jobs", json={"prompt": "x"}, headers=bearer(alice)).json()
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        response = guarded.http.request(method, f"/v1/jobs/{job['id']}{path}", headers=bearer(bob))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "job_not_found")
    assert guarded.http.get("/v1/jobs", headers=bearer(bob)).json()["data"] == []
    assert guarded.http.get(f"/v1/jobs?after={job['id']}", headers=bearer(bob)).status_code == 404


def test_an_idempotency_key_belongs_to_its_key(guarded):
    jobs = []
    for name in ("alice", "bob"):
        headers = {**bearer(guarded.add_key(name)), "Idempotency-Key": "order-17"}
        responses = [guarded.http.post("/v1/jobs", json={"prompt": name}, headers=headers) for _ in range(2)]
        assert [response.status_code for response in responses] == [202, 200]
        jobs.append(responses[1].json())
    assert [job["prompt"] for job in jobs] == ["alice", "bob"]


def test_the_number_of_event_streams_of_a_key_is_limited(guarded):
    alice, bob = guarded.add_key("alice"), guarded.add_key("bob")
    with ExitStack() as stack:
        limits = httpx2.Limits(max_connections=200)
        client = stack.enter_context(
            httpx2.Client(base_url=guarded.url, trust_env=False, timeout=60, limits=limits)
        )
        for _ in range(100):
            stream = stack.enter_context(client.stream("GET", "/fleet/events", headers=bearer(alice)))
            assert stream.status_code == 200
        rejected = guarded.http.get("/fleet/events", headers=bearer(alice))
        assert (rejected.status_code, rejected.json()["error"]["code"]) == (429, "too_many_streams")
        assert rejected.headers["Retry-After"] == "1"
        other = stack.enter_context(client.stream("GET", "/fleet/events", headers=bearer(bob)))
        assert other.status_code == 200
    while True:
        with guarded.http.stream("GET", "/fleet/events", headers=bearer(alice)) as again:
            if again.status_code == 200:
                break


def test_each_key_is_a_client_of_the_broker(guarded, broker_client, fleet):
    before = broker_client.stats()["clients"]
    for name in ("alice", "bob"):
        assert generate(guarded, guarded.add_key(name))[0] == 200
    expected = before + 2 + 1
    fleet.wait_until(lambda: broker_client.stats()["clients"] == expected, "one client per key and for statistics")


def test_a_body_that_is_too_long_is_rejected(start_gateway):
    gateway = start_gateway("--max-body-bytes", "2000")
    response = gateway.http.post("/v1/images/generations", json={"prompt": "x" * 3000})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")

    def chunks():
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * 100

    response = gateway.http.post(
        "/v1/images/generations", content=chunks(), headers={"content-type": "application/json"}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (413, "too_large")


def test_pages_of_other_sites_are_rejected_by_a_gateway_without_keys(gateway):
    body = {"prompt": "x", "size": "64x64"}
    response = gateway.http.post("/v1/images/generations", json=body, headers={"Host": "evil.example"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_host")
    response = gateway.http.post("/v1/images/generations", json=body, headers={"Origin": "https://evil.example"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")
    assert gateway.http.get("/v1/models", headers={"Origin": gateway.url}).status_code == 200


@pytest.mark.parametrize("host", ["[", "[::1", "a/b", "a b", "a" * 30_000, "a:123456", "a@b", "\xe9"])
def test_a_malformed_host_is_rejected_with_and_without_keys(gateway, guarded, host):
    for server, headers in ((gateway, {}), (guarded, {"Authorization": "Bearer x"})):
        response = server.http.get("/v1/models", headers={**headers, "Host": host.encode("latin1")})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "bad_request")


@pytest.mark.parametrize("origin", ["[", "null", "https://[::1", "x" * 30_000])
def test_a_malformed_origin_is_rejected(gateway, origin):
    response = gateway.http.get("/v1/models", headers={"Origin": origin})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")


@needs("openssl")
def test_https(start_gateway, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    arguments = [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(arguments, check=True, capture_output=True)
    gateway = start_gateway("--tls-certificate", str(certificate), "--tls-key", str(key))
    assert gateway.url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=certificate)
    assert httpx2.get(f"{gateway.url}/readyz", verify=trust, trust_env=False).text == "ok\n"


def test_image_urls_start_with_the_public_url(start_gateway):
    gateway = start_gateway("--public-url", "https://images.example.org/api/")
    body = {"prompt": "x", "size": "64x64", "response_format": "url"}
    response = gateway.http.post("/v1/images/generations", json=body, headers={"Host": "images.example.org"})
    assert response.json()["data"][0]["url"].startswith("https://images.example.org/api/v1/files/")
    job = gateway.wait(gateway.job(prompt="x")["id"])
    assert job["images"][0]["url"].startswith("https://images.example.org/api/v1/files/")


def test_cross_origin_requests_are_rejected_unless_configured(gateway, start_gateway):
    preflight = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in gateway.http.options("/v1/jobs", headers=preflight).headers
    other = start_gateway("--cors-origin", "https://a.example")
    response = other.http.options("/v1/jobs", headers=preflight)
    assert response.headers["access-control-allow-origin"] == "https://a.example"
    assert other.http.get("/v1/models", headers=preflight).status_code == 200


def test_requests_without_a_worker_or_a_broker_are_rejected_and_jobs_wait(start_gateway, lonely):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        absent = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        for broker, code in ((lonely, "no_worker"), (absent, "broker_unreachable")):
            gateway = start_gateway("--broker", broker)
            assert gateway.http.get("/healthz").status_code == 200
            assert gateway.http.get("/readyz").status_code == 503
            response = gateway.http.post("/v1/images/generations", json={"prompt": "x"})
            assert (response.status_code, response.json()["error"]["code"]) == (503, code)
            assert int(response.headers["retry-after"]) > 0
            assert gateway.http.post("/v1/jobs", json={"prompt": "x"}).status_code == 202, "jobs wait"

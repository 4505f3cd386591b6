"""Who may ask, for what, and how often."""

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
    """A gateway that asks for keys."""
    return start_gateway("--auth", "keys")


@pytest.fixture
def lonely(fleet):
    """The frontend of a broker without a worker."""
    yield fleet.start_broker(name="lonely").frontend
    fleet.terminate("lonely")
    del fleet.brokers["lonely"]


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def generate(gateway, key, **body):
    answer = gateway.http.post(
        "/v1/images/generations", json={"prompt": "x", "size": "64x64", **body}, headers=bearer(key)
    )
    return answer.status_code, answer.json().get("error", {}).get("code")


def test_a_key_is_needed(guarded):
    for path in ("/v1/models", "/v1/jobs", "/stats"):
        answer = guarded.http.get(path)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "missing_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
    with guarded.openai(key="imagegen_wrong") as client, pytest.raises(openai.AuthenticationError) as caught:
        client.models.list()
    assert caught.value.code == "invalid_api_key"
    with guarded.openai(key=guarded.add_key("alice")) as client:
        assert client.images.generate(prompt="x", size="64x64").data
    for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
        assert guarded.http.get(path).status_code == 200


def test_a_stranger_is_refused_before_the_body_is_read(guarded):
    host, port = guarded.url.removeprefix("http://").split(":")
    head = "Content-Type: application/json\r\nContent-Length: 30000000\r\nAuthorization: Bearer imagegen_wrong"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"POST /v1/jobs HTTP/1.1\r\nHost: {host}\r\n{head}\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_a_revoked_key_is_refused_at_once(guarded):
    key = guarded.add_key("alice")
    assert generate(guarded, key)[0] == 200
    assert guarded.keys("revoke", "alice") == "revoked alice\n"
    assert generate(guarded, key) == (401, "invalid_api_key")


def test_keys_are_kept_as_hashes(guarded):
    key = guarded.add_key("alice")
    kept = b"".join(path.read_bytes() for path in guarded.folder.glob("gateway.sqlite*"))
    assert b"alice" in kept
    assert key.encode() not in kept
    assert key not in guarded.keys("list", "--json")


def test_the_list_of_keys(guarded):
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


def test_wrong_words_for_keys(guarded):
    guarded.add_key("alice")
    for words, says in (
        (("add", "alice"), "there is, or was, a key 'alice'"),
        (("add", "everybody"), "stands for whoever asks where no keys are needed"),
        (("add", " "), "expected 1 to 128 printable characters"),
        (("add", "bob", "--max-size", "big"), "expected a size such as 1024x1024"),
        (("revoke", "carol"), "there is no key 'carol'; there are: alice"),
    ):
        ended = command(
            "imagegen-gateway",
            "--state-folder",
            str(guarded.folder),
            "keys",
            *words,
            check=False,
            env={**os.environ, "COLUMNS": "999"},
        )
        assert ended.returncode != 0
        assert says in ended.stderr


def test_limits_of_size_steps_models_and_priority(guarded):
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


def test_models_that_a_key_may_not_use_are_not_listed(guarded):
    with guarded.openai(key=guarded.add_key("alice", "--model", "other")) as client:
        assert list(client.models.list()) == []


def test_the_rate(guarded):
    key = guarded.add_key("alice", "--requests-per-minute", "2")
    assert [generate(guarded, key)[0] for _ in range(3)] == [200, 200, 429]
    answer = guarded.http.post("/v1/jobs", json={"prompt": "x"}, headers=bearer(key))
    assert answer.json()["error"]["type"] == "rate_limit_error"
    assert 1 <= int(answer.headers["retry-after"]) <= 30
    assert generate(guarded, guarded.add_key("bob"))[0] == 200, "others are not held up"


def test_jobs_and_requests_in_flight(start_gateway, lonely):
    guarded = start_gateway("--auth", "keys", "--broker", lonely)
    key = guarded.add_key("alice", "--max-in-flight", "1")
    job = guarded.http.post("/v1/jobs", json={"prompt": "x"}, headers=bearer(key)).json()
    assert generate(guarded, key) == (429, "too_many_in_flight")
    assert guarded.http.post("/v1/jobs", json={"prompt": "y"}, headers=bearer(key)).status_code == 429
    guarded.http.delete(f"/v1/jobs/{job['id']}", headers=bearer(key))
    assert generate(guarded, key) == (503, "no_worker")
    assert generate(guarded, key) == (503, "no_worker"), "what has ended takes no place"


def test_a_job_is_its_keys_own(guarded):
    alice, bob = guarded.add_key("alice"), guarded.add_key("bob")
    job = guarded.http.post("/v1/jobs", json={"prompt": "x"}, headers=bearer(alice)).json()
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/events")):
        answer = guarded.http.request(method, f"/v1/jobs/{job['id']}{path}", headers=bearer(bob))
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "job_not_found")
    assert guarded.http.get("/v1/jobs", headers=bearer(bob)).json()["data"] == []
    assert guarded.http.get(f"/v1/jobs?after={job['id']}", headers=bearer(bob)).status_code == 404


def test_an_idempotency_key_is_its_keys_own(guarded):
    jobs = []
    for name in ("alice", "bob"):
        headers = {**bearer(guarded.add_key(name)), "Idempotency-Key": "order-17"}
        answers = [guarded.http.post("/v1/jobs", json={"prompt": name}, headers=headers) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [202, 200]
        jobs.append(answers[1].json())
    assert [job["prompt"] for job in jobs] == ["alice", "bob"]


def test_a_key_has_so_many_streams(guarded):
    alice, bob = guarded.add_key("alice"), guarded.add_key("bob")
    with ExitStack() as stack:
        limits = httpx2.Limits(max_connections=200)
        client = stack.enter_context(
            httpx2.Client(base_url=guarded.url, trust_env=False, timeout=60, limits=limits)
        )
        for _ in range(100):
            stream = stack.enter_context(client.stream("GET", "/fleet/events", headers=bearer(alice)))
            assert stream.status_code == 200
        refused = guarded.http.get("/fleet/events", headers=bearer(alice))
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "too_many_streams")
        assert refused.headers["Retry-After"] == "1"
        other = stack.enter_context(client.stream("GET", "/fleet/events", headers=bearer(bob)))
        assert other.status_code == 200
    while True:
        with guarded.http.stream("GET", "/fleet/events", headers=bearer(alice)) as again:
            if again.status_code == 200:
                break


def test_keys_are_clients_of_their_own_for_the_broker(guarded, broker_client):
    before = broker_client.stats()["clients"]
    for name in ("alice", "bob"):
        assert generate(guarded, guarded.add_key(name))[0] == 200
    assert broker_client.stats()["clients"] == before + 2 + 1, "one each, and the gateway's own for statistics"


def test_a_body_that_is_too_long(start_gateway):
    gateway = start_gateway("--max-body-bytes", "2000")
    answer = gateway.http.post("/v1/images/generations", json={"prompt": "x" * 3000})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")

    def chunks():
        yield b'{"prompt": "'
        for _ in range(100):
            yield b"x" * 100

    answer = gateway.http.post(
        "/v1/images/generations", content=chunks(), headers={"content-type": "application/json"}
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_pages_of_other_sites_can_not_use_a_gateway_without_keys(gateway):
    body = {"prompt": "x", "size": "64x64"}
    answer = gateway.http.post("/v1/images/generations", json=body, headers={"Host": "evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_host")
    answer = gateway.http.post("/v1/images/generations", json=body, headers={"Origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "foreign_origin")
    assert gateway.http.get("/v1/models", headers={"Origin": gateway.url}).status_code == 200


@needs("openssl")
def test_https(start_gateway, tmp_path):
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    made = [*words.split(), "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate]
    subprocess.run(made, check=True, capture_output=True)
    gateway = start_gateway("--tls-certificate", str(certificate), "--tls-key", str(key))
    assert gateway.url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cafile=certificate)
    assert httpx2.get(f"{gateway.url}/readyz", verify=trust, trust_env=False).text == "ok\n"


def test_behind_a_proxy_urls_begin_with_the_public_one(start_gateway):
    gateway = start_gateway("--public-url", "https://images.example.org/api/")
    body = {"prompt": "x", "size": "64x64", "response_format": "url"}
    answer = gateway.http.post("/v1/images/generations", json=body, headers={"Host": "images.example.org"})
    assert answer.json()["data"][0]["url"].startswith("https://images.example.org/api/v1/files/")
    job = gateway.ended(gateway.job(prompt="x")["id"])
    assert job["images"][0]["url"].startswith("https://images.example.org/api/v1/files/")


def test_cross_origin_requests_are_off_unless_configured(gateway, start_gateway):
    asked = {"Origin": "https://a.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in gateway.http.options("/v1/jobs", headers=asked).headers
    other = start_gateway("--cors-origin", "https://a.example")
    answer = other.http.options("/v1/jobs", headers=asked)
    assert answer.headers["access-control-allow-origin"] == "https://a.example"
    assert other.http.get("/v1/models", headers=asked).status_code == 200


def test_no_worker_and_no_broker(start_gateway, lonely):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
        for broker, code in ((lonely, "no_worker"), (nobody, "broker_unreachable")):
            gateway = start_gateway("--broker", broker)
            assert gateway.http.get("/healthz").status_code == 200
            assert gateway.http.get("/readyz").status_code == 503
            answer = gateway.http.post("/v1/images/generations", json={"prompt": "x"})
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, code)
            assert int(answer.headers["retry-after"]) > 0
            assert gateway.http.post("/v1/jobs", json={"prompt": "x"}).status_code == 202, "jobs can wait"

"""Webhooks: signatures, retries and allowed addresses."""

import queue
import socket

import pytest
from openai import InvalidWebhookSignatureError, OpenAI

from tests.e2e.gateway.webhook_receiver import Receiver

OPEN = ("--webhook-allow", "127.0.0.0/8", "--webhook-retry", "0.05")


@pytest.fixture
def receive():
    """A function that starts a receiver; all are stopped at the end."""
    started = []

    def start(*statuses):
        started.append(Receiver(*statuses))
        return started[-1]

    yield start
    for receiver in started:
        receiver.close()


def attempts(gateway, outcome):
    name = f'imagegen_gateway_webhook_attempts_total{{outcome="{outcome}"}} '
    lines = gateway.http.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


def test_a_webhook_reports_the_end_of_a_job_and_is_signed(start_gateway, receive):
    gateway, receiver = start_gateway(*OPEN), receive()
    job = gateway.job(prompt="x", webhook_url=receiver.url)
    headers, body = receiver.calls.get(timeout=60)
    secret = gateway.keys("secret").strip()
    with OpenAI(api_key="none") as client:
        client.webhooks.verify_signature(body, headers, secret=secret)
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body + b" ", headers, secret=secret)
    receiver.calls.put((headers, body))
    _, event = receiver.next()
    assert (event["type"], event["data"]["id"]) == ("job.succeeded", job["id"])
    assert gateway.http.get(event["data"]["images"][0]["url"]).status_code == 200


def test_each_key_signs_with_its_own_secret(start_gateway, receive):
    gateway, receiver = start_gateway("--auth", "keys", *OPEN), receive()
    gateway.http.headers["Authorization"] = f"Bearer {gateway.add_key('alice')}"
    gateway.add_key("bob")
    gateway.job(prompt="x", webhook_url=receiver.url)
    headers, body = receiver.calls.get(timeout=60)
    with OpenAI(api_key="none") as client:
        client.webhooks.verify_signature(body, headers, secret=gateway.keys("secret", "alice").strip())
        with pytest.raises(InvalidWebhookSignatureError):
            client.webhooks.verify_signature(body, headers, secret=gateway.keys("secret", "bob").strip())


def test_retries_have_the_same_id(start_gateway, receive, fleet):
    gateway, receiver = start_gateway(*OPEN), receive(500, 302, 429)
    gateway.job(prompt="x", model="nope", webhook_url=receiver.url)
    calls = [receiver.next() for _ in range(4)]
    assert {event["type"] for _, event in calls} == {"job.failed"}
    assert len({headers["webhook-id"] for headers, _ in calls}) == 1
    fleet.wait_until(lambda: attempts(gateway, "delivered") == 1, "a delivered webhook")
    assert attempts(gateway, "failed") == 3


def test_a_webhook_is_abandoned_after_the_maximum_of_attempts(start_gateway, receive, fleet):
    gateway, receiver = start_gateway(*OPEN, "--webhook-attempts", "2"), receive(500, 500, 500)
    gateway.job(prompt="x", webhook_url=receiver.url)
    fleet.wait_until(lambda: attempts(gateway, "failed") == 2, "two attempts")
    gateway.restart()
    other = gateway.job(prompt="y", webhook_url=receiver.url)
    assert [receiver.next()[1]["data"]["prompt"] for _ in range(3)] == ["x", "x", "y"]
    assert gateway.http.get(f"/v1/jobs/{other['id']}").json()["state"] == "succeeded"


def test_status_410_ends_the_attempts(start_gateway, receive, fleet):
    gateway, receiver = start_gateway(*OPEN), receive(410)
    gateway.job(prompt="x", webhook_url=receiver.url)
    receiver.next()
    fleet.wait_until(lambda: attempts(gateway, "delivered") == 1, "a delivered webhook")


def test_due_webhooks_survive_a_killed_gateway(start_gateway, fleet, receive):
    with socket.socket() as closed:  # a port without a listener
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/hook"
    gateway = start_gateway(*OPEN[:2], "--webhook-retry", "0.5")
    receiver = receive()
    jobs = [gateway.job(prompt=f"number {i}", webhook_url=receiver.url) for i in range(4)]
    lost = gateway.job(prompt="lost", webhook_url=url)
    gateway.wait(lost["id"])
    fleet.wait_until(lambda: attempts(gateway, "failed") >= 1, "a failed attempt")
    fleet.wait_until(lambda: attempts(gateway, "delivered") == len(jobs), "delivered webhooks")
    gateway.http.get("/healthz")  # asks the database, which has stored them before
    gateway.restart()
    received = [receiver.next()[1]["data"]["id"] for _ in jobs]
    assert sorted(received) == sorted(job["id"] for job in jobs), "each exactly once"
    fleet.wait_until(lambda: attempts(gateway, "failed") >= 1, "another attempt after the restart")
    with pytest.raises(queue.Empty):
        receiver.calls.get_nowait()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "10.0.0.1", "169.254.169.254", "[::ffff:127.0.0.1]"])
def test_private_addresses_are_rejected(gateway, host):
    response = gateway.http.post("/v1/jobs", json={"prompt": "x", "webhook_url": f"http://{host}/hook"})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("webhook_url: expected a public address, got ")


def test_host_names_of_private_addresses_are_not_connected_to(start_gateway, receive, fleet):
    gateway, receiver = start_gateway("--webhook-attempts", "1"), receive()
    gateway.job(prompt="x", webhook_url=f"http://localhost:{receiver.port}/hook")
    fleet.wait_until(lambda: attempts(gateway, "failed") == 1, "a blocked attempt")
    with pytest.raises(queue.Empty):
        receiver.calls.get_nowait()

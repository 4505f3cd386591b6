"""Checks of the fleet from the answers of its brokers."""

import pytest

from imagegen_cli.doctor.findings import Status, ok, problem, report, warning, worst
from imagegen_cli.doctor.fleet_checks import (
    BrokerFacts,
    HttpFacts,
    check_broker,
    check_gateway,
    check_http,
    check_models,
    check_versions,
    check_workers,
)
from imagegen_protocol.handshake import (
    BROKEN_WITH_KEYS,
    BROKEN_WITHOUT_KEYS,
    KEY_REFUSED,
    KEYS_UNCHECKED,
    OTHER_SECURITY,
)
from tests.statistics import gpu_statistics, statistics_of

HERE = "tcp://127.0.0.1:5555"
URL = "http://127.0.0.1:8080/healthz"


def worker(name="w", **fields):
    return gpu_statistics(**{
        "worker": name, "host": "h", "gpu_id": 0, "state": "ready", "last_heard_seconds": 0.3,
        "step_age_seconds": None, "version": "1.0", **fields,
    })  # fmt: skip


def model(name, workers=1, unfinished=0):
    return {"model": name, "workers": workers, "unfinished": unfinished}


def broker(*workers, models=("a",), **fields):
    return BrokerFacts(HERE, statistics_of(**{
        "uptime_seconds": 61, "version": "1.0", "heartbeat": {"interval_seconds": 1.0, "liveness": 3},
        "default_model": "a", "per_gpu_stats": workers, "totals": {"workers_lost": 0},
        "per_model_stats": [each if isinstance(each, dict) else model(each) for each in models], **fields,
    }))  # fmt: skip


def told(findings):
    return [(finding.status, finding.message) for finding in findings]


def only(findings):
    (finding,) = findings
    return finding


def test_the_worst_status_is_reported():
    assert worst([]) is Status.OK
    assert worst([ok("a", "x"), warning("a", "x", "y")]) is Status.WARNING
    assert worst([problem("a", "x", "y"), warning("a", "x", "y")]) is Status.PROBLEM
    assert report([problem("a", "x", "y")]) == {
        "status": "problem",
        "findings": [{"check": "a", "status": "problem", "message": "x", "remedy": "y"}],
    }


# ---- brokers ----------------------------------------------------------------------------------------------


def test_a_broker_that_answers():
    found = check_broker(broker(worker(), worker("v")))
    assert (found.status, found.message) == (Status.OK, f"{HERE} answers: up 1:01, 2 workers")


@pytest.mark.parametrize(
    ("silence", "reason", "words", "remedy"),
    [
        ("refused", "", f"nothing listens at {HERE}", "start a fleet with imagegen up"),
        ("unknown host", "no such name", "is unknown: no such name", "correct the name"),
        ("unreachable", "No route to host", "is unreachable: No route to host", "firewall"),
        ("open", "", "did not answer within 5 s", "not its backend"),
    ],
)
def test_a_broker_that_does_not_answer(silence, reason, words, remedy):
    found = check_broker(BrokerFacts(HERE, connection=silence, reason=reason, seconds=5.0))
    assert found.status is Status.PROBLEM
    assert words in found.message
    assert remedy in found.remedy


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        (f"{HERE}: {KEY_REFUSED}", "--authorized-clients"),
        ("the broker does not, or no longer, accept this key", "SIGHUP"),
    ],
)
def test_a_broker_that_rejects_the_key(reason, remedy):
    found = check_broker(BrokerFacts(HERE, refusal=reason, code="unauthorized"))
    assert found.status is Status.PROBLEM
    assert found.message == f"{HERE} rejects this client: {reason.removeprefix(f'{HERE}: ')}"
    assert remedy in found.remedy


def test_a_broker_that_turns_this_client_away():
    found = check_broker(BrokerFacts(HERE, suspicion="the broker has 9 clients", connection="open", seconds=5.0))
    assert found.message == f"{HERE} is unusable: the broker has 9 clients"
    assert found.remedy == "see the broker's log"


@pytest.mark.parametrize(
    ("suspicion", "remedy"),
    [
        (OTHER_SECURITY, "5555 is for clients"),
        (BROKEN_WITH_KEYS, "its .key file as --broker-key"),
        (BROKEN_WITHOUT_KEYS, "give --key and --broker-key"),
        (KEYS_UNCHECKED, "the broker's log"),
    ],
)
def test_a_broker_with_failing_handshakes(suspicion, remedy):
    found = check_broker(BrokerFacts(HERE, suspicion=suspicion, connection="open", seconds=5.0))
    assert found.status is Status.PROBLEM
    assert found.message == f"{HERE} is unusable: {suspicion}"
    assert remedy in found.remedy
    down = check_broker(BrokerFacts(HERE, suspicion=suspicion, connection="refused", seconds=5.0))
    assert down.message == f"nothing listens at {HERE}"


def test_a_broker_of_another_protocol():
    found = check_broker(BrokerFacts(HERE, refusal="version 2", code="unsupported_version"))
    assert "this client's version" in found.remedy


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (HttpFacts(URL, reason="Connection refused"), "is unreachable: Connection refused"),
        (HttpFacts(URL, 200, "nginx"), "expected imagegen-broker at"),
        (HttpFacts(URL, 404), "an unknown server"),
        (HttpFacts(URL, 503, "imagegen-broker"), "answers with status 503"),
    ],
)
def test_http_problems(facts, words):
    found = check_http(facts)
    assert found.status is Status.PROBLEM
    assert words in found.message
    assert found.remedy


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        (HttpFacts(URL, reason="Connection refused"), "is unreachable: Connection refused"),
        (HttpFacts(URL, 503, text="no worker is registered"), "can't generate images: no worker is registered"),
        (HttpFacts(URL, 404), "expected imagegen-gateway at"),
        (HttpFacts(URL, 200, text="<html>"), "expected imagegen-gateway at"),
    ],
)
def test_gateway_problems(facts, words):
    found = check_gateway(facts)
    assert found.status is Status.PROBLEM
    assert words in found.message
    assert found.remedy


def test_a_gateway_answers():
    assert check_gateway(HttpFacts(URL, 200, text="ok")).status is Status.OK


def test_http_answers():
    assert check_http(HttpFacts(URL, 200, "imagegen-broker ")).status is Status.OK


# ---- workers ----------------------------------------------------------------------------------------------


def test_healthy_workers():
    assert told(check_workers(broker(worker()))) == [(Status.OK, "w (h, GPU 0): last heard 0.3 s ago")]


def test_no_worker():
    found = only(check_workers(broker()))
    assert found.status is Status.PROBLEM
    assert "imagegen-worker with --broker" in found.remedy


def test_an_unreachable_broker_has_no_findings_on_workers_and_models():
    silent = BrokerFacts(HERE, connection="refused")
    assert [*check_workers(silent), *check_models(silent)] == []


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"state": "stuck", "step_age_seconds": 130.0}, Status.PROBLEM, "stuck: its step has run for 2 min"),
        ({"state": "unreachable"}, Status.PROBLEM, "is unreachable for its broker"),
        ({"state": "draining"}, Status.WARNING, "draining"),
        ({"last_heard_seconds": 1.9}, Status.OK, "last heard 2 s ago"),
        ({"last_heard_seconds": 2.5}, Status.WARNING, "2 heartbeats missed"),
    ],
)
def test_unhealthy_workers(fields, status, words):
    found = only(check_workers(broker(worker(**fields))))
    assert found.status is status
    assert words in found.message


def test_the_tolerated_age_follows_the_heartbeat_interval():
    slow = broker(worker(last_heard_seconds=9.0), heartbeat={"interval_seconds": 5.0, "liveness": 3})
    assert only(check_workers(slow)).status is Status.OK
    late = broker(worker(last_heard_seconds=11.0), heartbeat={"interval_seconds": 5.0, "liveness": 3})
    assert "counts as dead after 15 s" in only(check_workers(late)).remedy


def test_lost_workers_are_a_warning():
    found = list(check_workers(broker(worker(), totals={"workers_lost": 2})))[-1]
    assert (found.status, found.message) == (
        Status.WARNING,
        f"{HERE} has lost 2 workers in its uptime of 1:01",
    )


# ---- models -----------------------------------------------------------------------------------------------


def test_served_models():
    assert told(check_models(broker(models=("a", "b")))) == [(Status.OK, f"served by {HERE}: a (default), b")]


@pytest.mark.parametrize(
    ("models", "status", "words"),
    [
        ([model("a"), model("b", 0, 3)], Status.PROBLEM, "no worker serves b, which has 3 unfinished requests"),
        ([model("a", 0), model("b")], Status.PROBLEM, "no worker serves a, the default model"),
        ([model("b")], Status.PROBLEM, "no worker serves a, the default model"),
        ([model("a"), model("b", 0)], Status.WARNING, "no worker serves b any more"),
    ],
)
def test_models_without_workers(models, status, words):
    found = next(iter(check_models(broker(models=models))))
    assert (found.status, found.message) == (status, words)
    assert "imagegen-worker --model" in found.remedy


# ---- versions ---------------------------------------------------------------------------------------------


def test_one_version():
    found = check_versions([broker(worker(), worker("other", version=None))], "1.0")
    assert (found.status, found.message) == (Status.OK, f"1.0: this client, {HERE}, w")


@pytest.mark.parametrize(
    ("brokers", "own"),
    [
        ([broker(worker(version="1.1"))], "1.0"),
        ([broker(worker(), version="1.1")], "1.0"),
        ([broker(worker())], "1.1"),
    ],
)
def test_mixed_versions(brokers, own):
    found = check_versions(brokers, own)
    assert found.status is Status.WARNING
    assert "1.0: " in found.message
    assert "1.1: " in found.message
    assert "one version" in found.remedy

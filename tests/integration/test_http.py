"""The broker's HTTP doors: statistics, metrics, health."""

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client.parser import text_string_to_metric_families

from imagegen_broker.http import HttpServer
from imagegen_broker.metrics import BrokerCollector


@pytest.fixture
def web(start_broker):
    server = start_broker()
    http = HttpServer("127.0.0.1", 0, server.snapshot)
    yield lambda path, host="localhost": fetch(f"http://{http.address}{path}", host)
    http.close()


def fetch(url, host="localhost"):
    """Return the status and the text."""
    try:
        request = urllib.request.Request(url, headers={"Host": host})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_stats_are_json(web):
    status, text = web("/stats")
    assert status == 200
    assert json.loads(text)["per_gpu_stats"] == []


def test_metrics_parse_and_carry_the_prefix(web):
    status, text = web("/metrics")
    assert status == 200
    names = {family.name for family in text_string_to_metric_families(text)}
    assert names
    assert all(name.startswith("imagegen_broker_") for name in names)
    assert "imagegen_broker_queue_wait_seconds" in names


def test_health_says_alive_and_readiness_waits_for_a_worker(web):
    assert web("/healthz") == (200, "ok\n")
    status, text = web("/readyz")
    assert status == 503
    assert "no worker" in text


def test_a_scrape_that_takes_its_time_holds_up_neither_the_loop_nor_others(web, monkeypatch):
    begun, go_on = threading.Event(), threading.Event()
    collect = BrokerCollector.collect

    def slow(self):
        begun.set()
        assert go_on.wait(60)
        yield from collect(self)

    monkeypatch.setattr(BrokerCollector, "collect", slow)
    with ThreadPoolExecutor() as pool:
        scrape = pool.submit(web, "/metrics")
        assert begun.wait(60)
        assert web("/healthz") == (200, "ok\n")  # the loop has answered
        assert not scrape.done()
        go_on.set()
        assert scrape.result(60)[0] == 200


def test_an_unknown_path_lists_those_there_are(web):
    status, text = web("/")
    assert status == 404
    assert "/stats" in text


def test_a_loop_that_does_not_answer_is_unhealthy():
    def stuck(timeout):
        raise TimeoutError

    http = HttpServer("127.0.0.1", 0, stuck)
    try:
        assert fetch(f"http://{http.address}/healthz")[0] == 503
    finally:
        http.close()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:8080", 200),
        ("evil.example:80", 421),
        ("127.0.0.1.evil.example", 421),
    ],
)
def test_a_web_page_can_not_read_the_statistics_under_a_name_of_its_own(web, host, status):
    assert web("/stats", host)[0] == status

"""Every query of the dashboard on a real Prometheus that scrapes a real fleet under load."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from imagegen_client import Client
from imagegen_protocol.errors import ImagegenError
from imagegen_worker.config import WorkerConfig
from imagegen_worker.telemetry.gpu_metrics import GpuCollector
from imagegen_worker.telemetry.http import HttpServer
from tests.e2e.conftest import SIMULATED, start_simulated
from tests.e2e.gateway.conftest import Gateway
from tests.e2e.gateway.webhook_receiver import Receiver
from tests.prometheus import PrometheusServer, needs_prometheus
from tests.unit.worker.devices.standin import A, B, Card, StandIn
from tests.waiting import wait_until
from tools.dashboard.panels import FLEET, GATEWAY, GPU
from tools.dashboard.prometheus import Prometheus
from tools.dashboard.render import render

WORKERS = ("sim0", "sim1")
WINDOW = "5s"


@pytest.fixture
def cards():
    """Serve the GPU metrics of each worker, from a stand-in for NVML; return the address."""
    registry = CollectorRegistry()
    nvml = StandIn(Card(A, temperature=61), Card(B, temperature=74))
    for number, (name, card) in enumerate(zip(WORKERS, nvml.cards, strict=True)):
        config = WorkerConfig(backend="simulated", name=name, gpu=number, gpu_uuid=card.uuid, gpu_name=card.name)
        registry.register(GpuCollector(config, nvml))
    server = HttpServer("127.0.0.1", 0, registry, lambda: "")
    yield f"127.0.0.1:{server.port}"
    server.close()


@pytest.fixture
def broker(tmp_path, fleet):
    """Start a broker; return the file in which it lists its workers for Prometheus."""
    targets = tmp_path / "prometheus" / "targets.json"
    targets.parent.mkdir()
    fleet.start_broker("--heartbeat-interval", "0.2", "--prometheus-targets", str(targets))
    return targets


@pytest.fixture
def gateway(tmp_path, fleet, broker):
    """A gateway that requires keys."""
    words = ("--auth", "keys", "--webhook-allow", "127.0.0.0/8", "--webhook-retry", "0.2")
    gateway = Gateway(fleet, "gateway", tmp_path / "state", words)
    yield gateway
    gateway.close()


@pytest.fixture
def prometheus(tmp_path, fleet, cards, broker, gateway):
    """A Prometheus that scrapes a broker, a gateway and two workers with injected faults."""
    with PrometheusServer(tmp_path / "prometheus") as server:
        assert server.targets == broker
        http = [url.removeprefix("http://") for url in (fleet.http, gateway.url)]
        server.start(http[0], cards, gateway=http[1])
        with Client(fleet.frontend) as client:
            faults = ("--simulated-fail", "oom:3", "--simulated-fail", "error-on:broken")
            start_simulated(fleet, client, *WORKERS, options=(*SIMULATED, "--http-port", "0", *faults))
        yield server


@pytest.fixture
def load(fleet, prometheus):
    """Two clients that request images continuously; some of the requests fail."""
    stopped = threading.Event()

    def generate(client, number):
        prompt = "a broken circle" if number % 9 == 0 else "a red circle"
        try:
            client.generate(prompt, seed=number, width=64, height=64, num_images=1 + number % 3)
        except ImagegenError:
            assert "broken" in prompt

    def run(lanes):
        with Client(fleet.frontend) as client:
            threads = [threading.Thread(target=generate_repeatedly, args=(client, lane)) for lane in range(lanes)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def generate_repeatedly(client, lane):
        number = lane
        while not stopped.is_set():
            generate(client, number)
            number += 7

    clients = [threading.Thread(target=run, args=(lanes,)) for lanes in (30, 6)]
    for thread in clients:
        thread.start()
    yield
    stopped.set()
    for thread in clients:
        thread.join()


@pytest.fixture
def calls(gateway, prometheus):
    """Callers of the gateway: valid and invalid requests, jobs whose webhooks fail, and an unknown key."""
    stopped, receiver = threading.Event(), Receiver(*[500] * 1000)
    key = {"Authorization": f"Bearer {gateway.add_key('alice', '--max-steps', '4', '--priority', '1')}"}
    unknown = {"Authorization": "Bearer unknown"}

    def run(lane):
        with httpx2.Client(base_url=gateway.url, timeout=60, trust_env=False) as http:
            for number in range(lane, 10**6, 2):
                if stopped.is_set():
                    return
                prompt = "a broken circle" if number % 4 < 2 else "a red circle"
                body = {"prompt": prompt, "size": "64x64", "num_inference_steps": 4, "priority": 1}
                http.post("/v1/jobs", json={**body, "webhook_url": receiver.url}, headers=key).raise_for_status()
                http.post("/v1/images/generations", json={**body, "num_inference_steps": 5}, headers=key)
                http.post("/v1/images/generations", json=body, headers=unknown)
                http.post("/v1/images/generations", json=body, headers=key)

    with ThreadPoolExecutor() as pool:
        lanes = [pool.submit(run, lane) for lane in range(2)]
        yield
        stopped.set()
    for lane in lanes:
        lane.result()
    receiver.close()


def without_data(server, panels, worker=None):
    """Return the queries without a value in the last seconds in any of their series."""
    now = time.time()
    return [
        f"{panel.title}: {query.expr}"
        for panel in panels
        for query in panel.queries
        if not any(series.has_data for series in server.range(query.expr, now - 5, now, 1, worker))
    ]


def labels_above_0(server, title):
    """Return the label values of the series of a gateway panel that had a value above 0."""
    (panel,) = [panel for panel in GATEWAY if panel.title == title]
    now = time.time()
    (query,) = panel.queries
    found = server.range(query.expr, now - 30, now, 1)
    return {value for series in found if any(one > 0 for one in series.values) for value in series.labels.values()}


@needs_prometheus
def test_every_panel_has_data_and_losing_a_worker_alerts(fleet, prometheus, load, calls, tmp_path):
    server = Prometheus(prometheus.url(), WINDOW)
    groups = wait_until(lambda: targets(prometheus), "targets")
    assert len(groups[0]["targets"]) == 2

    missing = ["not queried yet"]

    def is_complete():
        of_workers = [one for worker in WORKERS for one in without_data(server, GPU, worker)]
        missing[:] = [*without_data(server, FLEET + GATEWAY), *of_workers]
        return not missing

    try:
        wait_until(is_complete, "data in every panel")
    finally:
        print(*missing, sep="\n")
    assert set(server.label_values("imagegen_worker_warm", "worker")) == set(WORKERS)
    for title, labels in (
        ("Requests", {"2", "4", "5"}),
        ("Rejected", {"key", "limit"}),
        ("Finished jobs", {"succeeded", "failed"}),
        ("Webhooks", {"failed"}),
    ):
        wait_until(
            lambda title=title, labels=labels: labels_above_0(server, title) == labels, f"{labels} in {title}"
        )

    screenshot = tmp_path / "dashboard.png"
    assert render(screenshot, prometheus.url(), seconds=10, window=WINDOW, gpus=1) == []
    assert screenshot.read_bytes()[:4] == b"\x89PNG"

    fleet.kill("sim1")
    now = time.time()
    alert = 'ALERTS{alertname="ImagegenWorkerLost", alertstate="firing"}'
    wait_until(lambda: server.range(alert, now, time.time(), 1), "alert for the lost worker")
    wait_until(lambda: len(targets(prometheus)[0]["targets"]) == 1, "end of the lost worker as a target")


def targets(prometheus):
    return json.loads(prometheus.targets.read_text()) if prometheus.targets.exists() else []

"""Every query of the dashboard, on a real Prometheus that scrapes a real fleet at work."""

import json
import threading
import time

import pytest
from prometheus_client import CollectorRegistry

from imagegen_client import Client
from imagegen_protocol.errors import ImagegenError
from imagegen_worker.config import WorkerConfig
from imagegen_worker.gpu_metrics import GpuCollector
from imagegen_worker.http import HttpServer
from tests.e2e.conftest import SIMULATED, start_simulated
from tests.prometheus import PrometheusServer, needs_prometheus, wait_until
from tests.unit.worker.devices.standin import A, B, Card, StandIn
from tools.dashboard.asking import Prometheus
from tools.dashboard.panels import FLEET, GPU
from tools.dashboard.render import draw

WORKERS = ("sim0", "sim1")
WINDOW = "5s"


@pytest.fixture
def cards():
    """The metrics of each worker's GPU, from a stand-in for NVML, as a worker on a GPU shows them: its address."""
    registry = CollectorRegistry()
    nvml = StandIn(Card(A, temperature=61), Card(B, temperature=74))
    for number, (name, card) in enumerate(zip(WORKERS, nvml.cards, strict=True)):
        config = WorkerConfig(backend="simulated", name=name, gpu=number, gpu_uuid=card.uuid, gpu_name=card.name)
        registry.register(GpuCollector(config, nvml))
    server = HttpServer("127.0.0.1", 0, registry, lambda: "")
    yield f"127.0.0.1:{server.port}"
    server.close()


@pytest.fixture
def prometheus(tmp_path, fleet, cards):
    """A Prometheus that scrapes a broker and two workers, one of which is short of memory."""
    with PrometheusServer(tmp_path / "prometheus") as server:
        fleet.start_broker("--heartbeat-interval", "0.2", "--prometheus-targets", str(server.targets))
        server.start(fleet.http.removeprefix("http://"), cards)
        with Client(fleet.frontend) as client:
            faults = ("--simulated-fail", "oom:3", "--simulated-fail", "error-on:broken")
            start_simulated(fleet, client, *WORKERS, options=(*SIMULATED, "--http-port", "0", *faults))
        yield server


@pytest.fixture
def load(fleet, prometheus):
    """Two clients that ask for images all the time, some of which can't be made."""
    over = threading.Event()

    def ask(client, number):
        prompt = "a broken circle" if number % 9 == 0 else "a red circle"
        try:
            client.generate(prompt, seed=number, width=64, height=64, num_images=1 + number % 3)
        except ImagegenError:
            assert "broken" in prompt

    def run(lanes):
        with Client(fleet.frontend) as client:
            threads = [threading.Thread(target=keep_on, args=(client, lane)) for lane in range(lanes)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def keep_on(client, lane):
        number = lane
        while not over.is_set():
            ask(client, number)
            number += 7

    clients = [threading.Thread(target=run, args=(lanes,)) for lanes in (30, 6)]
    for thread in clients:
        thread.start()
    yield
    over.set()
    for thread in clients:
        thread.join()


def without_data(asked, worker=None):
    """The queries that give no number: none of the last seconds, in any of their series."""
    now = time.time()
    return [
        f"{panel.title}: {query.expr}"
        for panel in (FLEET if worker is None else GPU)
        for query in panel.queries
        if not any(series.has_data for series in asked.range(query.expr, now - 5, now, 1, worker))
    ]


@needs_prometheus
def test_every_panel_has_data_and_losing_a_worker_alerts(fleet, prometheus, load, tmp_path):
    asked = Prometheus(prometheus.url(), WINDOW)
    groups = wait_until(lambda: targets(prometheus), "targets")
    assert len(groups[0]["targets"]) == 2

    missing = ["not asked yet"]

    def all_there():
        missing[:] = [*without_data(asked), *(one for worker in WORKERS for one in without_data(asked, worker))]
        return not missing

    try:
        wait_until(all_there, "data in every panel", timeout=60)
    finally:
        print(*missing, sep="\n")
    assert set(asked.label_values("imagegen_worker_warm", "worker")) == set(WORKERS)

    picture = tmp_path / "dashboard.png"
    assert draw(picture, prometheus.url(), seconds=10, window=WINDOW) == []
    assert picture.read_bytes()[:4] == b"\x89PNG"

    fleet.kill("sim1")
    now = time.time()
    alert = 'ALERTS{alertname="ImagegenWorkerLost", alertstate="firing"}'
    wait_until(lambda: asked.range(alert, now, time.time(), 1), "alert for the lost worker")
    wait_until(lambda: len(targets(prometheus)[0]["targets"]) == 1, "end of the lost worker as a target")


def targets(prometheus):
    return json.loads(prometheus.targets.read_text()) if prometheus.targets.exists() else []

"""A worker whose broker is behind a TCP proxy: restarts, resets and wrong keys."""

import time

import pytest

from imagegen_client import Client
from tests.e2e.conftest import BROKER, SIMULATED, command
from tests.tcp_proxy import TcpProxy

PATIENCE = 60.0


@pytest.fixture
def proxied(fleet):
    """A broker, and a proxy in front of its port for workers."""
    fleet.start_broker(*BROKER)
    with TcpProxy(fleet.brokers["broker"].backend) as proxy:
        yield proxy


def start_worker(fleet, proxy, *options):
    fleet.spawn(
        "worker", ["imagegen-worker", "--broker", proxy.endpoint, "--name", "worker", *SIMULATED, *options]
    )


def test_a_worker_reconnects_after_restarts_and_resets_behind_a_proxy(fleet, proxied):
    start_worker(fleet, proxied)
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        proxied.reset_all()
        job = client.submit("a red circle", seed=1)
        assert job.result(PATIENCE).worker == "worker"
        fleet.kill("broker")
        broken, end = proxied.accepted + 6, time.monotonic() + PATIENCE
        while proxied.accepted < broken:
            assert time.monotonic() < end, "the worker does not connect again"
            time.sleep(0.05)
        fleet.start_broker(*BROKER)
        assert client.submit("a red circle", seed=2).result(PATIENCE).worker == "worker"
    assert fleet.terminate("worker") == 0


def test_a_worker_without_keys_logs_the_likely_reason_and_serves_once_the_broker_has_none(fleet, tmp_path):
    for name, place in (("broker", ""), ("alice", "clients"), ("gpu0", "workers")):
        command("imagegen", "keygen", name, "--out", str(tmp_path / place))
    fleet.start_broker(
        *BROKER, "--key", str(tmp_path / "broker.key_secret"),
        "--authorized-clients", str(tmp_path / "clients"), "--authorized-workers", str(tmp_path / "workers"),
    )  # fmt: skip
    with TcpProxy(fleet.brokers["broker"].backend) as proxy:
        start_worker(fleet, proxy)
        log = tmp_path / "logs" / "worker.log"
        fleet.wait_until(lambda: "only one side uses keys" in log.read_text(), "a suspicion in the worker's log")
        fleet.kill("broker")
        fleet.start_broker(*BROKER)
        with Client(fleet.frontend) as client:
            assert client.submit("a red circle", seed=1).result(PATIENCE).worker == "worker"


def test_a_worker_registers_once_at_a_broker_with_two_endpoints(fleet, proxied):
    start_worker(fleet, proxied, "--broker", fleet.brokers["broker"].backend)
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        for seed in range(40):
            assert client.submit("a red circle", seed=seed).result(PATIENCE).worker == "worker"
        totals = client.stats()["totals"]
        assert totals["workers_registered"] <= 3
        fleet.kill("worker")
        fleet.wait_until(lambda: client.stats()["num_gpus"] == 0, "no worker")

"""Several hosts, each a network namespace: links that go down and dropped packets."""

from contextlib import contextmanager
from threading import Event

import pytest

from tests.e2e.hosts import HOSTS, LIVENESS_SECONDS, WORKERS, Hosts, report_of
from tests.programs import needs
from tools.fleet import Fleet
from tools.netns import Network, available

_why_not = available()
pytestmark = [needs("ip", "iptables"), pytest.mark.skipif(_why_not is not None, reason=str(_why_not))]


@pytest.fixture(scope="module")
def all_hosts(tmp_path_factory):
    """The hosts of all tests of this file."""
    with Network(*HOSTS) as network, Fleet(log_folder=tmp_path_factory.mktemp("logs")) as fleet:
        yield Hosts(network, fleet)


@pytest.fixture
def hosts(all_hosts):
    """The hosts, with both workers registered and idle."""
    all_hosts.wait(
        lambda gpus: set(gpus) == set(WORKERS) and not any(gpu["current_queue_depth"] for gpu in gpus.values()),
        "both workers, idle",
    )
    return all_hosts


@contextmanager
def fault(hosts, kind, victim):
    """Disconnect a host within the context."""
    if kind == "link":
        hosts.network.link(victim, up=False)
    else:
        hosts.network.drop_packets(victim, drop=True)
    try:
        yield
    finally:
        if kind == "link":
            hosts.network.link(victim, up=True)
        else:
            hosts.network.drop_packets(victim, drop=False)


def hold(seconds):
    """Wait while a fault lasts."""
    Event().wait(seconds)


def test_workers_on_other_hosts_serve_requests(hosts):
    before = {name: gpu["total_requests"] for name, gpu in hosts.gpus().items()}
    report = report_of(hosts.bench(40))
    assert report["successful"] == 40

    def served(gpus):
        return [gpus[name]["total_requests"] - before[name] for name in gpus]

    hosts.wait(lambda gpus: sum(served(gpus)) >= 40, "complete totals")
    assert min(served(hosts.gpus())) > 0


@pytest.mark.parametrize("victim", ["far", "client", "broker"])
@pytest.mark.parametrize("kind", ["link", "drop"])
@pytest.mark.parametrize("seconds", [0.5 * LIVENESS_SECONDS, 5 * LIVENESS_SECONDS], ids=["short", "long"])
def test_a_network_failure_loses_no_request(hosts, victim, kind, seconds):
    burst = hosts.bench(60)
    hosts.wait(lambda gpus: sum(gpu["running"] > 0 for gpu in gpus.values()) == 2, "running batches on both")
    with fault(hosts, kind, victim):
        hold(seconds)
    report = report_of(burst)
    assert (report["successful"], report["failed"]) == (60, 0)
    hosts.wait_for_both()


def test_requests_of_a_disconnected_host_are_requeued_before_it_returns(hosts):
    burst = hosts.bench(30)
    hosts.wait(lambda gpus: gpus.get("far", {}).get("running"), "a running batch")
    with fault(hosts, "drop", "far"):
        assert report_of(burst)["successful"] == 30
        assert "far" not in hosts.gpus()
    hosts.wait_for_both()

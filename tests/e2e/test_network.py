"""Several hosts, each a network namespace, with addresses beyond loopback, pulled cables and dropped packets."""

from contextlib import contextmanager
from threading import Event

import pytest

from tests.e2e.hosts import HOSTS, LIVENESS_SECONDS, WORKERS, Hosts, finished
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
    """Cut a host off while the context lasts."""
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
    """Let a fault last for a while."""
    Event().wait(seconds)


def test_hosts_serve_one_another(hosts):
    before = {name: gpu["total_requests"] for name, gpu in hosts.gpus().items()}
    said = finished(hosts.bench(40))
    assert said["successful"] == 40

    def served(gpus):
        return [gpus[name]["total_requests"] - before[name] for name in gpus]

    hosts.wait(lambda gpus: sum(served(gpus)) >= 40, "complete totals")
    assert min(served(hosts.gpus())) > 0


@pytest.mark.parametrize("victim", ["far", "client", "broker"])
@pytest.mark.parametrize("kind", ["link", "drop"])
@pytest.mark.parametrize("seconds", [0.5 * LIVENESS_SECONDS, 5 * LIVENESS_SECONDS], ids=["short", "long"])
def test_a_cut_costs_time_and_no_request(hosts, victim, kind, seconds):
    burst = hosts.bench(60)
    hosts.wait(lambda gpus: sum(gpu["running"] > 0 for gpu in gpus.values()) == 2, "running batches on both")
    with fault(hosts, kind, victim):
        hold(seconds)
    said = finished(burst)
    assert (said["successful"], said["failed"]) == (60, 0)
    hosts.wait_for_both()


def test_the_work_of_a_host_that_is_cut_off_moves_on_before_it_is_back(hosts):
    burst = hosts.bench(30)
    hosts.wait(lambda gpus: gpus.get("far", {}).get("running"), "a running batch")
    with fault(hosts, "drop", "far"):
        assert finished(burst)["successful"] == 30
        assert "far" not in hosts.gpus()
    hosts.wait_for_both()

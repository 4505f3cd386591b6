"""Several hosts, each a network namespace, with addresses beyond loopback, pulled cables and dropped packets."""

from threading import Event

import pytest

from tests.e2e.hosts import HOSTS, LIVENESS_SECONDS, Hosts, finished
from tests.programs import needs
from tools.fleet import Fleet
from tools.netns import Network, available

_why_not = available()
pytestmark = [needs("ip", "iptables"), pytest.mark.skipif(_why_not is not None, reason=str(_why_not))]


@pytest.fixture
def hosts(tmp_path):
    with Network(*HOSTS) as network, Fleet(log_folder=tmp_path / "logs") as fleet:
        yield Hosts(network, fleet)


def hold(seconds):
    """Let a fault last for a while."""
    Event().wait(seconds)


def test_hosts_serve_one_another(hosts):
    said = finished(hosts.bench(40))
    assert said["successful"] == 40
    hosts.wait(lambda gpus: sum(gpu["total_requests"] for gpu in gpus.values()) >= 40, "complete totals")
    assert min(gpu["total_requests"] for gpu in hosts.gpus().values()) > 0


@pytest.mark.parametrize("victim", ["far", "client", "broker"])
@pytest.mark.parametrize("fault", ["link", "drop"])
@pytest.mark.parametrize("seconds", [0.5 * LIVENESS_SECONDS, 5 * LIVENESS_SECONDS], ids=["short", "long"])
def test_a_cut_costs_time_and_no_request(hosts, victim, fault, seconds):
    burst = hosts.bench(60)
    hosts.wait(lambda gpus: sum(gpu["running"] > 0 for gpu in gpus.values()) == 2, "running batches on both")
    if fault == "link":
        hosts.network.link(victim, up=False)
    else:
        hosts.network.drop_packets(victim, drop=True)
    hold(seconds)
    if fault == "link":
        hosts.network.link(victim, up=True)
    else:
        hosts.network.drop_packets(victim, drop=False)
    said = finished(burst)
    assert (said["successful"], said["failed"]) == (60, 0)
    hosts.wait_for_both()


def test_the_work_of_a_host_that_is_cut_off_moves_on_before_it_is_back(hosts):
    burst = hosts.bench(30)
    hosts.wait(lambda gpus: gpus.get("far", {}).get("running"), "a running batch")
    hosts.network.drop_packets("far", drop=True)
    assert finished(burst)["successful"] == 30
    assert "far" not in hosts.gpus()
    hosts.network.drop_packets("far", drop=False)
    hosts.wait_for_both()

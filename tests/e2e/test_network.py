"""Several hosts, each a network namespace, with addresses beyond loopback, pulled cables and dropped packets."""

import json
import subprocess
from threading import Event

import pytest

from tests.e2e.conftest import program
from tools.fleet import Endpoints, Fleet
from tools.netns import Network, available

_why_not = available()
pytestmark = pytest.mark.skipif(_why_not is not None, reason=str(_why_not))

INTERVAL = 0.25
LIVENESS_SECONDS = 3 * INTERVAL
HOSTS = ("broker", "client", "near", "far")
SLOW = ("--backend", "simulated", "--simulated-batch-seconds", "0.1", "--simulated-image-seconds", "0.05")


class Hosts:
    """A broker, two workers and a place for clients, each on a host of its own."""

    def __init__(self, network, fleet):
        self.network = network
        self.fleet = fleet
        address = network.addresses["broker"]
        place = Endpoints(f"tcp://{address}:0", f"tcp://{address}:0", f"http://{address}:0")
        options = ("--heartbeat-interval", str(INTERVAL), "--insecure")
        fleet.start_broker(*options, at=place, prefix=network.enter("broker"))
        for name in ("near", "far"):
            fleet.start_worker(name, *SLOW, prefix=network.enter(name))
        self.wait(lambda gpus: set(gpus) == {"near", "far"}, "both workers")

    def gpus(self):
        """The broker's view of its workers, asked for on its own host."""
        words = ["imagegen", "stats", "--json", "--broker", self.fleet.frontend]
        done = subprocess.run(
            [*self.network.enter("broker"), program(words[0]), *words[1:]],
            capture_output=True,
            text=True,
            check=False,
        )
        return {gpu["worker"]: gpu for gpu in json.loads(done.stdout)["per_gpu_stats"]} if done.stdout else {}

    def wait(self, holds, what):
        self.fleet.wait_until(lambda: holds(self.gpus()), what)

    def bench(self, burst):
        """Start a burst on the client's host."""
        words = [program("imagegen"), "bench", "--json", "--burst", str(burst), "--broker", self.fleet.frontend]
        return subprocess.Popen([*self.network.enter("client"), *words], stdout=subprocess.PIPE, text=True)


@pytest.fixture
def hosts(tmp_path):
    with Network(*HOSTS) as network, Fleet(log_folder=tmp_path / "logs") as fleet:
        yield Hosts(network, fleet)


def finished(process):
    """Wait for a burst and return what it says."""
    said, _ = process.communicate(timeout=150)
    return json.loads(said)


def hold(seconds):
    """Let a fault last for a while."""
    Event().wait(seconds)


def test_hosts_serve_one_another(hosts):
    said = finished(hosts.bench(40))
    assert said["successful"] == 40
    totals = {name: gpu["total_requests"] for name, gpu in hosts.gpus().items()}
    assert sorted(totals) == ["far", "near"]
    assert min(totals.values()) > 0


@pytest.mark.parametrize("victim", ["far", "client", "broker"])
@pytest.mark.parametrize("fault", ["link", "drop"])
@pytest.mark.parametrize("seconds", [0.5 * LIVENESS_SECONDS, 5 * LIVENESS_SECONDS], ids=["short", "long"])
def test_a_cut_costs_time_and_no_request(hosts, victim, fault, seconds):
    burst = hosts.bench(60)
    hosts.wait(lambda gpus: all(gpu["running"] for gpu in gpus.values()), "running batches on both")
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
    hosts.wait(lambda gpus: set(gpus) == {"near", "far"}, "both workers again")


def test_the_work_of_a_host_that_is_cut_off_moves_on_before_it_is_back(hosts):
    burst = hosts.bench(30)
    hosts.wait(lambda gpus: gpus["far"]["running"], "a running batch")
    hosts.network.drop_packets("far", drop=True)
    assert finished(burst)["successful"] == 30
    assert "far" not in hosts.gpus()
    hosts.network.drop_packets("far", drop=False)
    hosts.wait(lambda gpus: "far" in gpus, "the worker again")

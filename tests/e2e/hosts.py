"""A broker, two workers and a client, each on a host of its own: a network namespace."""

import json
import shutil
import subprocess

from tests.e2e.conftest import command, program
from tools.fleet import Endpoints

INTERVAL = 0.25
LIVENESS_SECONDS = 3 * INTERVAL
WORKERS = ("near", "far")
HOSTS = ("broker", "client", *WORKERS)
SLOW = ("--backend", "simulated", "--simulated-batch-seconds", "0.1", "--simulated-image-seconds", "0.05")


class Keys:
    """Keys as in docs/operations.md: each host generates its own pair, and public keys are copied."""

    def __init__(self, folder):
        self._folder = folder
        self.make("broker")
        for name, role in (("alice", "clients"), *((name, "workers") for name in WORKERS)):
            self.make(name)
            self.copy(name, "broker", role)
            self.copy("broker", name)

    def make(self, host):
        """Generate the key pair of a host, on that host."""
        command("imagegen", "keygen", host, "--out", str(self._folder / host))

    def copy(self, host, to, role="."):
        """Copy a host's public key to another host."""
        folder = self._folder / to / role
        folder.mkdir(exist_ok=True)
        shutil.copy(self._folder / host / f"{host}.key", folder)

    def of_broker(self):
        """Return the key options of the broker."""
        own = self._folder / "broker"
        lists = ("--authorized-clients", str(own / "clients"), "--authorized-workers", str(own / "workers"))
        return ("--key", str(own / "broker.key_secret"), *lists)

    def of_peer(self, host, broker="broker"):
        """Return the key options of a worker or a client."""
        own = self._folder / host
        return ("--key", str(own / f"{host}.key_secret"), "--broker-key", str(own / f"{broker}.key"))


class Hosts:
    """A fleet on addresses other than loopback, with keys or, without them, `--insecure`."""

    def __init__(self, network, fleet, keys=None):
        self.network = network
        self.fleet = fleet
        self.keys = keys
        self._client_options = keys.of_peer("alice") if keys else ()
        address = network.addresses["broker"]
        place = Endpoints(f"tcp://{address}:0", f"tcp://{address}:0", f"http://{address}:0")
        options = ("--heartbeat-interval", str(INTERVAL), *(keys.of_broker() if keys else ("--insecure",)))
        fleet.start_broker("--strategy", "queue-depth", *options, at=place, prefix=network.enter("broker"))
        for name in WORKERS:
            self.start_worker(name, *(keys.of_peer(name) if keys else ()))
        self.wait_for_both()

    def start_worker(self, name, *options, host=None):
        self.fleet.start_worker(name, *SLOW, *options, prefix=self.network.enter(host or name))

    def gpus(self):
        """Return the broker's statistics of its workers by name, queried on its own host."""
        words = ("stats", "--json", "--broker", self.fleet.frontend, *self._client_options)
        done = self.run("broker", *words)
        return {gpu["worker"]: gpu for gpu in json.loads(done.stdout)["per_gpu_stats"]} if done.stdout else {}

    def run(self, host, *words):
        """Run `imagegen` on a host until it exits."""
        words = [*self.network.enter(host), program("imagegen"), *words]
        return subprocess.run(words, capture_output=True, text=True, timeout=300, check=False)

    def wait(self, condition, description):
        self.fleet.wait_until(lambda: condition(self.gpus()), description)

    def wait_for_both(self):
        self.wait(lambda gpus: set(gpus) == set(WORKERS), "both workers")

    def bench(self, burst):
        """Start a burst on the client's host; return its process."""
        words = ("bench", "--json", "--burst", str(burst), "--broker", self.fleet.frontend, *self._client_options)
        command = [*self.network.enter("client"), program("imagegen"), *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def report_of(process):
    """Wait until a burst ends; return its report."""
    report, _ = process.communicate(timeout=300)
    return json.loads(report)

"""Fixtures: a broker and a simulated worker for all tests of a file, and gateways with chosen options."""

import json
import subprocess
from contextlib import ExitStack

import httpx2
import pytest
from openai import OpenAI

from imagegen_client import Client
from tests.e2e.conftest import BROKER, command
from tools.fleet import Fleet

QUICK = ("--simulated-batch-seconds", "0.05", "--simulated-image-seconds", "0.01")
SLOW = ("--simulated-batch-seconds", "1", "--simulated-image-seconds", "0")


class Gateway:
    """A running `imagegen-gateway` with an HTTP client."""

    def __init__(self, fleet, name, folder, arguments):
        self.fleet, self.name, self.folder, self.arguments = fleet, name, folder, arguments
        self.http = None
        self.start()

    def start(self):
        options = ["--http", "127.0.0.1:0", "--state-folder", str(self.folder), "--log-level", "debug"]
        broker = [] if "--broker" in self.arguments else ["--broker", self.fleet.frontend]
        process = self.fleet.spawn(
            self.name, ["imagegen-gateway", *options, *broker, *self.arguments], stdout=subprocess.PIPE
        )
        line = process.stdout.readline()
        assert line.startswith("http="), "the gateway did not start; see its log"
        self.url = line.strip().removeprefix("http=")
        self.close()
        self.http = httpx2.Client(base_url=self.url, timeout=60, trust_env=False)

    def close(self):
        if self.http is not None:
            self.http.close()

    def kill(self):
        self.fleet.kill(self.name)

    def restart(self):
        """Kill it with SIGKILL, and start it again with the same state folder on another port."""
        self.kill()
        self.start()

    def keys(self, *arguments):
        """Run `imagegen-gateway keys …`."""
        return command("imagegen-gateway", "--state-folder", str(self.folder), "keys", *arguments).stdout

    def add_key(self, name, *limits):
        """Create a key and return it."""
        return json.loads(self.keys("add", name, *limits, "--json"))["key"]

    def openai(self, key="none", kind=OpenAI, **options):
        """Return OpenAI's client, without retries by default."""
        options.setdefault("max_retries", 0)
        return kind(base_url=f"{self.url}/v1", api_key=key, **options)

    def job(self, **body):
        """Create a job and return it."""
        response = self.http.post("/v1/jobs", json={"size": "64x64", **body})
        assert response.status_code == 202, response.text
        return response.json()

    def events(self, job_id):
        """Follow a job until it ends; return the events as pairs of name and data."""
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            return list(read_events(response))

    def wait(self, job_id):
        """Wait until a job has ended and return it."""
        return self.events(job_id)[-1][1]


def read_events(response):
    """Yield the events of a stream as pairs of name and data."""
    name = None
    for line in response.iter_lines():
        field, _, value = line.partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


@pytest.fixture(scope="module")
def worker_options():
    """Options of the worker; a test file can override them."""
    return QUICK


@pytest.fixture(scope="module")
def fleet(tmp_path_factory, worker_options):
    """A broker and one simulated worker, for all tests of a file."""
    with Fleet(log_folder=tmp_path_factory.mktemp("logs")) as fleet:
        fleet.start_broker(*BROKER)
        fleet.start_worker("sim", "--gpu", "0", "--backend", "simulated", *worker_options)
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, 1)
        yield fleet


@pytest.fixture(scope="module")
def broker_client(fleet):
    """A client connected to the broker."""
    with Client(fleet.frontend) as client:
        yield client


@pytest.fixture
def start_gateway(fleet, tmp_path):
    """A function that starts a gateway with a state folder of its own; all are stopped at the end."""
    started = []
    with ExitStack() as stack:

        def start(*arguments):
            number = len(started)
            gateway = Gateway(fleet, f"gateway-{tmp_path.name}-{number}", tmp_path / f"state-{number}", arguments)
            started.append(gateway)
            stack.callback(gateway.close)
            return gateway

        yield start
    for gateway in started:
        if gateway.name in fleet.processes:
            assert fleet.terminate(gateway.name) == 0, "the gateway failed at shutdown; see its log"


@pytest.fixture
def gateway(start_gateway):
    """A gateway that requires no keys."""
    return start_gateway()

"""An API key and a client key abuse a fleet in every way at once: requests of others succeed in bounded memory."""

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager

import httpx2
import psutil
import pytest

from imagegen_client import Client
from tests.e2e.conftest import BROKER, command
from tests.e2e.gateway.attackers import MAX_BODY
from tests.e2e.gateway.conftest import QUICK, Gateway
from tests.e2e.gateway.webhook_receiver import Receiver
from tools.fleet import Fleet

ROUNDS = int(os.environ.get("ATTACK_ROUNDS", "1"))
"""Number of pairs of a quiet and an attacked phase; `docs/security.md` has the figures of 5."""
REQUESTS = 20
"""Number of requests of each kind in a phase."""
SMALL_REQUESTS = 10
"""Number of small requests for each of the others: their p99 needs many."""
CONTROL = """
import asyncio, uvicorn

async def app(scope, receive, send):
    headers = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"{}"})

async def main():
    server = uvicorn.Server(uvicorn.Config(app, port=0, http="h11", lifespan="off", log_level="critical"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving

asyncio.run(main())
"""
"""A server that is not attacked: its latencies show what the machine is delayed by."""
MAX_GROWTH = 3 * 4 * MAX_BODY + 128 * 1024**2
"""Maximum growth of the gateway's memory: three copies of the bodies that one key may hold, and the rest."""
MAX_BROKER_GROWTH = 256 * 1024**2
"""Maximum growth of the broker's memory: the bytes of one client key, though none of its payloads arrives."""


class HangingReceiver:
    """A server that accepts connections and never answers."""

    def __init__(self):
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/hook"

    def close(self):
        self._listener.close()


class MemoryPeak:
    """The largest memory of a process, sampled in a thread."""

    def __init__(self, pid):
        self._process = psutil.Process(pid)
        self.before = self.peak = self._process.memory_info().rss
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        while not self._ended.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def stop(self):
        self._ended.set()
        self._thread.join()


class Bob:
    """The requests of another API key and of another client key, with their latencies in seconds."""

    def __init__(self, gateway, key, receiver, client, control):
        self._client = client
        self._control = control
        self._headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(base_url=gateway.url, trust_env=False, timeout=120, headers=self._headers)
        self._receiver = receiver
        self.latencies = {}

    def _timed(self, name, status, method, path, **options):
        begun = time.monotonic()
        response = self._http.request(method, path, **options)
        self.latencies.setdefault(name, []).append(time.monotonic() - begun)
        assert response.status_code == status, (name, response.text)
        return response

    def round(self):
        body = {"prompt": "x", "size": "64x64"}
        self._timed("image", 200, "POST", "/v1/images/generations", json=body)
        begun = time.monotonic()
        self._client.generate("x", width=64, height=64)
        self.latencies.setdefault("image of a client", []).append(time.monotonic() - begun)
        for _ in range(SMALL_REQUESTS):
            self._timed("models", 200, "GET", "/v1/models")
            self._timed("health", 200, "GET", "/healthz")
            self._timed("health of a server that is not attacked", 200, "GET", self._control)
        job = {**body, "webhook_url": self._receiver.url}
        id_ = self._timed("job", 202, "POST", "/v1/jobs", json=job).json()["id"]
        begun = time.monotonic()
        _, event = self._receiver.next()
        self.latencies.setdefault("job to webhook", []).append(time.monotonic() - begun)
        assert (event["type"], event["data"]["id"]) == ("job.succeeded", id_)
        name = event["data"]["images"][0]["url"].rpartition("/")[2]
        self._timed("file", 200, "GET", f"/v1/files/{name}")

    def close(self):
        self._http.close()


def percentile(seconds, share):
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(phases):
    """Print the latencies of all rounds; `phases` has pairs of those without and with the attack."""
    for name in phases[0][0]:
        quiet, under = ([seconds for pair in phases for seconds in pair[side][name]] for side in (0, 1))
        for title, share in (("median", 0.5), ("p99", 0.99)):
            before, after = percentile(quiet, share), percentile(under, share)
            print(f"{name}: {title} {before * 1000:.0f} -> {after * 1000:.0f} ms, {after / before:.2f} times")
        each = [percentile(pair[1][name], 0.99) / percentile(pair[0][name], 0.99) for pair in phases]
        print(f"{name}: p99 of one round: median ratio {statistics.median(each):.2f}")


@pytest.fixture
def fleet(tmp_path):
    """A broker with keys, and a simulated worker."""
    keys = tmp_path / "keys"
    for name in ("broker", "clients/mallory", "clients/bob", "clients/gateway", "workers/sim"):
        place, _, name_ = name.rpartition("/")
        command("imagegen", "keygen", name_, "--out", str(keys / place))
    with Fleet(log_folder=tmp_path / "logs") as fleet:
        fleet.keys = keys
        fleet.start_broker(
            *BROKER, "--key", str(keys / "broker.key_secret"), "--max-clients", "1000",
            "--authorized-clients", str(keys / "clients"), "--authorized-workers", str(keys / "workers"),
        )  # fmt: skip
        own = ("--key", str(keys / "workers/sim.key_secret"), "--broker-key", str(keys / "broker.key"))
        fleet.start_worker("sim", "--gpu", "0", "--backend", "simulated", *QUICK, *own)
        yield fleet


@pytest.fixture
def bobs_client(fleet):
    own, broker = fleet.keys / "clients/bob.key_secret", fleet.keys / "broker.key"
    with Client(fleet.frontend, key=own, broker_key=broker) as client:
        fleet.wait_for_workers(client, 1)
        yield client


@pytest.fixture
def gateway(fleet, bobs_client, tmp_path):
    own = ("--key", str(fleet.keys / "clients/gateway.key_secret"), "--broker-key", str(fleet.keys / "broker.key"))
    limits = ("--auth", "keys", "--max-body-bytes", str(MAX_BODY), "--webhook-allow", "127.0.0.0/8")
    gateway = Gateway(fleet, "gateway", tmp_path / "state", (*limits, *own))
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


@pytest.fixture
def control():
    """Start a server that is not attacked; return the URL of a small response."""
    with subprocess.Popen([sys.executable, "-c", CONTROL], stdout=subprocess.PIPE) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.kill()


def large_file(gateway, headers):
    """Return the path of an image of 20 MB."""
    job = gateway.http.post("/v1/jobs", json={"prompt": "x", "size": "64x64"}, headers=headers).json()
    with gateway.http.stream("GET", f"/v1/jobs/{job['id']}/events", headers=headers) as response:
        last = [line for line in response.iter_lines() if line.startswith("data: ")][-1]
    name = json.loads(last.removeprefix("data: "))["images"][0]["url"].rpartition("/")[2]
    (gateway.folder / "results" / name).write_bytes(os.urandom(20 * 1024**2))
    return f"/v1/files/{name}"


@contextmanager
def attack(*attacks):
    """Attack during the block, at a low priority, as attackers have machines of their own; print the outcomes."""
    module = [sys.executable, "-m", "tests.e2e.gateway.attackers"]
    running = [
        subprocess.Popen(["nice", "-n", "19", *module, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for words in attacks
    ]
    try:
        for process in running:
            assert process.stdout.readline() == b"begun\n"
        yield
        for process in running:
            process.stdin.close()
            print("attack:", process.stdout.read().decode().strip())
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()


def phase(bob):
    bob.latencies = {}
    for _ in range(REQUESTS):
        bob.round()
    return bob.latencies


def test_a_hostile_key_harms_no_other_key(fleet, gateway, bobs_client, control):
    keys = {name: gateway.add_key(name) for name in ("mallory", "bob")}
    mallory = fleet.keys / "clients/mallory.key_secret"
    phases = []
    with ExitStack() as stack:
        receiver, hanging = Receiver(), HangingReceiver()
        stack.callback(receiver.close)
        stack.callback(hanging.close)
        bob = Bob(gateway, keys["bob"], receiver, bobs_client, control)
        stack.callback(bob.close)
        bob.round()
        file = large_file(gateway, {"Authorization": f"Bearer {keys['mallory']}"})
        memory = {name: MemoryPeak(fleet.processes[name].pid) for name in ("gateway", "broker")}
        for each in memory.values():
            stack.callback(each.stop)
        for _ in range(ROUNDS):
            quiet = phase(bob)
            with attack(
                ("gateway", gateway.url, keys["mallory"], file, hanging.url),
                ("broker", fleet.frontend, str(mallory), str(fleet.keys / "broker.key")),
            ):
                phases.append((quiet, phase(bob)))
    show(phases)
    for name, each in memory.items():
        print(f"memory of the {name}: {each.before / 1e6:.0f} MB before, {each.peak / 1e6:.0f} MB at most")
    assert memory["gateway"].peak - memory["gateway"].before < MAX_GROWTH
    assert memory["broker"].peak - memory["broker"].before < MAX_BROKER_GROWTH
    for name in memory:
        assert (fleet._log_folder / f"{name}.log").stat().st_size < 10 * 1000**2

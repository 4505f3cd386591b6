"""The memory of a fleet does not grow with the number of requests and connections."""

import os
from statistics import mean

import msgpack
import psutil
import pytest
import zmq
from msgspec.structs import astuple

from imagegen_client import Client
from imagegen_protocol.keys import read_curve_keys
from tests.e2e.conftest import BROKER, command, start_simulated
from tests.families import sd

REQUESTS = 2000
EVERY = 50
"""Requests between two measurements of the memory."""
GROWTH_BYTES = {"old": 4 * 1024 * 1024, "broker": 1024 * 1024}
CONNECTS = 200
QUICK = ("--backend", "simulated", "--simulated-batch-seconds", "0", "--simulated-image-seconds", "0")


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    sd().pipeline.save_pretrained(folder)
    return folder


def varied(number):
    """Return parameters that differ from the previous request's and repeat later, so that caches are used."""
    return {
        "prompt": f"picture number {number % 42} " + "of many " * (number % 7),
        "seed": number,
        "num_inference_steps": 1 + number % 2,
        "guidance_scale": 1.0 + number % 4,
        "width": (64, 32)[number % 2],
        "height": (64, 32)[number // 2 % 2],
        "negative_prompt": "blurry" if number % 5 == 0 else None,
    }


def growth(sizes):
    """Return by how many bytes the mean of the last quarter exceeds that of the third."""
    quarter = len(sizes) // 4
    return mean(sizes[-quarter:]) - mean(sizes[-2 * quarter : -quarter])


@pytest.mark.timeout(600)
def test_memory_is_flat_over_two_thousand_requests(fleet, client, tiny_model):
    fleet.start_worker("old", "--model", str(tiny_model), "--device", "cpu", "--torch-threads", "1")
    fleet.wait_for_workers(client, 1)
    processes = {name: psutil.Process(fleet.processes[name].pid) for name in GROWTH_BYTES}
    sizes, files = {name: [] for name in processes}, {}
    for number, result in enumerate(client.map(map(varied, range(REQUESTS)), window=24)):
        assert result.seed == number
        if number % EVERY == EVERY - 1:
            for name, process in processes.items():
                sizes[name].append(process.memory_info().rss)
        if number == REQUESTS // 2:
            files = {name: process.num_fds() for name, process in processes.items()}
    for name, bound in GROWTH_BYTES.items():
        assert growth(sizes[name]) < bound, (name, sizes[name])
    assert {name: process.num_fds() for name, process in processes.items()} == files
    fleet.wait_until(lambda: is_empty(client.stats()), "an empty broker and an empty worker")


def is_empty(stats):
    """Return whether the broker holds only the querying client."""
    idle = all(gpu["current_queue_depth"] == gpu["unacknowledged"] == 0 for gpu in stats["per_gpu_stats"])
    return idle and stats["clients"] == 1 and stats["held_bytes"] == 0 and not any(astuple(stats.requests))


@pytest.fixture(params=["open", "with keys"])
def broker_port(request, fleet, tmp_path):
    """Start a broker and a worker; return the key options of a client, and the keys for a plain socket."""
    options, worker, keys = (), (), {}
    if request.param == "with keys":
        for name, place in (("broker", "."), ("alice", "clients"), ("gpu0", "workers")):
            command("imagegen", "keygen", name, "--out", str(tmp_path / place))
        secret, public = tmp_path / "broker.key_secret", tmp_path / "broker.key"
        lists = ("--authorized-clients", tmp_path / "clients", "--authorized-workers", tmp_path / "workers")
        options = ("--key", secret, *lists)
        worker = ("--key", tmp_path / "workers" / "gpu0.key_secret", "--broker-key", public)
        keys = {"key": tmp_path / "clients" / "alice.key_secret", "broker_key": public}
    fleet.start_broker(*BROKER, *map(str, options))
    with Client(fleet.frontend, **keys) as client:
        start_simulated(fleet, client, "w", options=(*QUICK, *map(str, worker)))
        yield client, keys


def request_and_disconnect(endpoint, keys, number):
    """Send a request and disconnect without GOODBYE and without acknowledging an answer."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    if keys:
        read_curve_keys(keys["key"], keys["broker_key"]).apply(dealer)
    dealer.connect(endpoint)
    body = msgpack.packb({"prompt": "x", "seed": number})
    dealer.send_multipart([msgpack.packb({"v": 2, "type": "submit", "request_id": os.urandom(16)}), body])
    if number % 4:
        dealer.poll(10_000)  # the broker has sent a message, so it has registered this client
    context.destroy(0)


def test_disconnected_clients_leave_no_state(fleet, broker_port):
    client, keys = broker_port
    broker = psutil.Process(fleet.processes["broker"].pid)
    client.generate("x", seed=1)
    files, threads = broker.num_fds(), broker.num_threads()
    for number in range(CONNECTS):
        if number % 2:
            request_and_disconnect(fleet.frontend, keys, number)
            continue
        with Client(fleet.frontend, **keys) as polite:
            if number % 4:
                assert polite.generate("x", seed=number, timeout_seconds=60).seed == number
            else:
                polite.submit("x", seed=number)
    fleet.wait_until(lambda: is_empty(client.stats()), "an empty broker")
    fleet.wait_until(lambda: broker.num_fds() <= files, "closed connections")
    assert broker.num_threads() == threads
    assert client.generate("x", seed=2).seed == 2

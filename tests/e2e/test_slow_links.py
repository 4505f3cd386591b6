"""Transfers of images over slow links that take many heartbeat intervals, and links that break meanwhile.

The links are those of a TCP proxy. Each transfer takes several times the liveness time. A second client on a fast
link is served meanwhile; its latencies are printed and not judged.
"""

import io
import os
import random
import statistics
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import msgpack
import pytest
import zmq
from PIL import Image

from imagegen_client import Client, ImagegenError
from tests.e2e.conftest import PATIENT, SIMULATED
from tests.raw import Peer
from tests.tcp_proxy import TcpProxy
from tests.waiting import wait_until

HEARTBEATS = ("--heartbeat-interval", "0.2", "--liveness", "10")
RATE = 60_000
"""Bytes per second of the slow links."""
SIDE = 400
"""Pixels; an image of noise has 480 kB, which take 8 s: four times the liveness time."""
IMAGE_BYTES = 3 * SIDE * SIDE
FULL_RATE = 125_000
"""1 Mbit/s, on which `FULL_SIDE` takes 32 s."""
FULL_SIDE = 1155
PATIENCE = 120.0
OVERHEAD = 1.15
"""Ratio of all bytes on the wire to the bytes of images."""
RESENT_BYTES = 64 * 1024
"""Maximum number of bytes in transit when a connection broke."""

ANSWERS = 25
"""Answers of 4 MB each."""
LARGEST_GROWTH = 48 * 2**20
"""Memory that the broker may need in addition to the window of 4 MiB: malloc keeps some freed memory."""


def noise(seed, side=SIDE):
    """Return the image that the noise worker generates from a seed."""
    return Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side))


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class FastClient:
    """A client on a fast link that generates small images, one after the other, until `stop`."""

    def __init__(self, endpoint, model="fast"):
        self.seconds = []
        self.errors = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint, model))
        self._thread.start()

    def _run(self, endpoint, model):
        try:
            with Client(endpoint) as client:
                while not self._stop.is_set():
                    begun = time.monotonic()
                    client.generate("fast", model=model, seed=1, num_inference_steps=1, width=64, height=64)
                    self.seconds.append(time.monotonic() - begun)
        except ImagegenError as error:
            self.errors.append(error)

    def stop(self):
        self._stop.set()
        self._thread.join()
        assert not self.errors
        assert len(self.seconds) > 20
        found = sorted(self.seconds)
        p99 = found[int(0.99 * (len(found) - 1))]
        print(f"fast client: {len(found)} requests, median {statistics.median(found):.4f} s, p99 {p99:.4f} s")


def start(fleet, *, worker_link=None):
    """Start a broker, a worker for the model "noise" and one for "fast"; return the proxy and the clients."""
    place = fleet.start_broker(*HEARTBEATS)
    proxy = TcpProxy(place.backend, **worker_link) if worker_link else None
    start_noise_worker(fleet, proxy.endpoint if proxy else place.backend)
    fleet.start_worker("fast", "--model", "fast", *SIMULATED)
    return SimpleNamespace(place=place, worker_proxy=proxy)


def start_noise_worker(fleet, backend):
    command = ["python", "-m", "tests.e2e.noise_worker", "--broker", backend, "--name", "noise"]
    fleet.spawn("noise", [*command, "--model", "noise", *SIMULATED])


def generate(client, seed, side=SIDE, **options):
    return client.submit(
        "noise", model="noise", seed=seed, num_inference_steps=2, width=side, height=side, **options
    )


def check_healthy(client, dispatched=1):
    """Check that nothing was counted as dead, lost or requeued."""
    totals = client.stats(PATIENCE)["totals"]
    assert totals["clients_lost"] == totals["workers_lost"] == 0
    assert totals["requeued"] == {}
    return totals


@pytest.fixture
def fast_links(fleet):
    """A fleet without slow links between broker and workers."""
    started = start(fleet)
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 2)
    return started


@pytest.fixture(params=["short", "30 seconds"])
def size(request):
    full = request.param != "short"
    return SimpleNamespace(side=FULL_SIDE if full else SIDE, rate=FULL_RATE if full else RATE)


# ---- slow links without failures ---------------------------------------------------------------------------


def test_a_large_answer_arrives_over_a_slow_link_of_its_client(fleet, fast_links, size):
    fast = FastClient(fleet.frontend)
    with TcpProxy(fleet.frontend, down=size.rate, latency=0.02) as proxy, Client(proxy.endpoint) as client:
        job = generate(client, 7, size.side)
        assert job.result(PATIENCE).image.tobytes() == noise(7, size.side).tobytes()
        assert proxy.accepted == 1
        assert proxy.passed["down"] < OVERHEAD * 3 * size.side**2
        check_healthy(client)
    fast.stop()


def test_a_large_input_image_arrives_over_a_slow_link_of_its_client(fleet, fast_links, size):
    fast = FastClient(fleet.frontend)
    with TcpProxy(fleet.frontend, up=size.rate, latency=0.02) as proxy, Client(proxy.endpoint) as client:
        job = generate(client, 7, 64, image=png(noise(1, size.side)))
        assert job.result(PATIENCE).image.tobytes() == noise(7, 64).tobytes()
        assert proxy.accepted == 1
        assert proxy.passed["up"] < OVERHEAD * 3 * size.side**2
        check_healthy(client)
    fast.stop()


@pytest.mark.parametrize("way", ["answer", "input"])
def test_a_slow_link_of_a_worker_transfers_large_images(fleet, way):
    limit = {"up": RATE} if way == "answer" else {"down": RATE}
    started = start(fleet, worker_link={**limit, "latency": 0.02})
    with started.worker_proxy as proxy, Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 2)
        fast = FastClient(fleet.frontend)
        if way == "answer":
            assert generate(client, 7).result(PATIENCE).image.tobytes() == noise(7).tobytes()
        else:
            job = generate(client, 7, 64, image=png(noise(1)))
            assert job.result(PATIENCE).image.tobytes() == noise(7, 64).tobytes()
        assert proxy.accepted == 1
        assert proxy.passed["up" if way == "answer" else "down"] < OVERHEAD * IMAGE_BYTES
        check_healthy(client)
        fast.stop()


def test_small_requests_of_a_client_pass_its_own_large_answer(fleet, fast_links):
    with TcpProxy(fleet.frontend, down=RATE) as proxy, Client(proxy.endpoint) as client:
        job = generate(client, 7)
        wait_until(lambda: proxy.passed["down"] > IMAGE_BYTES // 8, "the transfer has not begun")
        client.generate("fast", model="fast", seed=1, num_inference_steps=1, width=64, height=64)
        assert not job.done()
        assert job.result(PATIENCE).image.tobytes() == noise(7).tobytes()


# ---- links that break in the middle of a transfer ----------------------------------------------------------


def break_by_broker_restart(fleet, proxy):
    fleet.kill("broker")
    fleet.start_broker(*HEARTBEATS)


def break_by_reset(fleet, proxy):
    proxy.reset_after(down=1_000, up=10_000)
    wait_until(lambda: proxy.accepted > 1, "nothing was reset")


def break_by_silence(fleet, proxy):
    proxy.half_open_all()


def break_by_refusals(fleet, proxy):
    proxy.refuses = True
    proxy.reset_all()
    wait_until(lambda: proxy.accepted > 3, "nobody connects again")
    proxy.refuses = False


BREAKS = [break_by_broker_restart, break_by_reset, break_by_silence, break_by_refusals]


@pytest.mark.parametrize("break_", BREAKS, ids=lambda break_: break_.__name__)
def test_an_answer_resumes_where_the_link_of_its_client_broke(fleet, fast_links, break_):
    with TcpProxy(fleet.frontend, down=2 * RATE) as proxy, Client(proxy.endpoint) as client:
        job = generate(client, 7)
        wait_until(lambda: proxy.passed["down"] > IMAGE_BYTES // 2, "the transfer has not begun")
        break_(fleet, proxy)
        assert job.result(PATIENCE).image.tobytes() == noise(7).tobytes()
        assert proxy.accepted > 1
        assert proxy.passed["down"] < OVERHEAD * IMAGE_BYTES + RESENT_BYTES
        print(f"{break_.__name__}: {proxy.passed['down']} bytes for {IMAGE_BYTES}")


@pytest.mark.parametrize("break_", BREAKS, ids=lambda break_: break_.__name__)
def test_an_answer_resumes_where_the_link_of_its_worker_broke(fleet, break_):
    started = start(fleet, worker_link={"up": 2 * RATE})
    with started.worker_proxy as proxy, Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 2)
        job = generate(client, 7)
        wait_until(lambda: proxy.passed["up"] > IMAGE_BYTES // 2, "the transfer has not begun")
        break_(fleet, proxy)
        result = job.result(PATIENCE)
        assert result.image.tobytes() == noise(7).tobytes()
        assert proxy.passed["up"] < OVERHEAD * IMAGE_BYTES + RESENT_BYTES
        print(f"{break_.__name__}: {proxy.passed['up']} bytes for {IMAGE_BYTES}, attempt {result.attempt}")


@pytest.mark.parametrize("break_", BREAKS[1:], ids=lambda break_: break_.__name__)
def test_an_input_image_resumes_where_the_link_of_its_client_broke(fleet, fast_links, break_):
    with TcpProxy(fleet.frontend, up=2 * RATE) as proxy, Client(proxy.endpoint) as client:
        job = generate(client, 7, 64, image=png(noise(1)))
        wait_until(lambda: proxy.passed["up"] > IMAGE_BYTES // 2, "the transfer has not begun")
        break_(fleet, proxy)
        assert job.result(PATIENCE).image.tobytes() == noise(7, 64).tobytes()
        assert proxy.passed["up"] < OVERHEAD * IMAGE_BYTES + RESENT_BYTES
        print(f"{break_.__name__}: {proxy.passed['up']} bytes for {IMAGE_BYTES}")


@pytest.mark.parametrize("break_", BREAKS[1:], ids=lambda break_: break_.__name__)
def test_an_input_image_resumes_where_the_link_of_its_worker_broke(fleet, break_):
    started = start(fleet, worker_link={"down": 2 * RATE})
    with started.worker_proxy as proxy, Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 2)
        job = generate(client, 7, 64, image=png(noise(1)))
        wait_until(lambda: proxy.passed["down"] > IMAGE_BYTES // 2, "the transfer has not begun")
        break_(fleet, proxy)
        assert job.result(PATIENCE).image.tobytes() == noise(7, 64).tobytes()
        assert proxy.passed["down"] < OVERHEAD * IMAGE_BYTES + RESENT_BYTES
        print(f"{break_.__name__}: {proxy.passed['down']} bytes for {IMAGE_BYTES}")


@pytest.mark.parametrize("slow", ["client", "worker"])
def test_an_input_image_is_sent_again_after_a_restart_of_the_broker_that_stored_it(fleet, slow):
    """A restarted broker has lost its stored chunks. A worker that keeps the request keeps its chunks, too."""
    started = start(fleet, worker_link={"down": 2 * RATE} if slow == "worker" else {})
    proxy = started.worker_proxy or TcpProxy(fleet.frontend, up=2 * RATE)
    way = "down" if slow == "worker" else "up"
    with proxy, Client(fleet.frontend if slow == "worker" else proxy.endpoint) as client:
        fleet.wait_for_workers(client, 2)
        job = generate(client, 7, 64, image=png(noise(1)))
        wait_until(lambda: proxy.passed[way] > IMAGE_BYTES // 2, "the transfer has not begun")
        break_by_broker_restart(fleet, proxy)
        assert job.result(PATIENCE).image.tobytes() == noise(7, 64).tobytes()
        assert proxy.passed[way] < 1.6 * OVERHEAD * IMAGE_BYTES + RESENT_BYTES
        if slow == "client":
            assert proxy.passed[way] > 1.4 * IMAGE_BYTES


# ---- a client that reads nothing ---------------------------------------------------------------------------


def test_a_client_that_reads_nothing_costs_bounded_memory_and_delays_no_other(fleet):
    place = fleet.start_broker(*PATIENT)
    start_noise_worker(fleet, place.backend)
    fleet.start_worker("fast", "--model", "fast", *SIMULATED)
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 2)
        stalled = dial_and_submit(place.frontend, ANSWERS)
        headers = [stalled.receive("result")[0] for _ in range(ANSWERS)]
        assert sum(sum(header["frame_bytes"]) for header in headers) > 1.5 * LARGEST_GROWTH
        before = largest = resident_bytes(fleet)
        fast = FastClient(fleet.frontend)
        for _ in range(30):
            for header in headers:
                stalled.send(fetch_all(header))
            for _ in range(3):
                client.generate("fast", model="fast", seed=1, num_inference_steps=1, width=64, height=64)
            largest = max(largest, resident_bytes(fleet))
        fast.stop()
        print(f"the broker grew by {(largest - before) / 2**20:.1f} MiB")
        assert largest - before < LARGEST_GROWTH
        check_healthy(client)
        stalled.send({"type": "goodbye"})
        stalled.close()


def dial_and_submit(endpoint, count):
    stalled = Peer(zmq.Context.instance(), endpoint)
    for number in range(count):
        body = {
            "prompt": "noise",
            "seed": number,
            "num_inference_steps": 1,
            "width": FULL_SIDE,
            "height": FULL_SIDE,
        }
        header = {"type": "submit", "request_id": os.urandom(16), "model": "noise"}
        stalled.send(header, msgpack.packb(body))
    return stalled


def fetch_all(header):
    keys = {"request_id": header["request_id"], "payload_id": header["payload_id"]}
    return {"type": "fetch", **keys, "offset": 0, "length": sum(header["frame_bytes"])}


def resident_bytes(fleet):
    statm = Path(f"/proc/{fleet.processes['broker'].pid}/statm").read_text()
    return int(statm.split()[1]) * os.sysconf("SC_PAGE_SIZE")

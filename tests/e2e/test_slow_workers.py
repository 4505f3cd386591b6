"""A worker behind a slow link, on which one answer or input image takes longer than the liveness time.

`test_slow_links.py` tests other workers and clients beside such a worker, and links that break.
"""

import pytest
from PIL import Image

from imagegen_client import Client
from tests.e2e.conftest import SIMULATED
from tests.tcp_proxy import TcpProxy

PATIENCE = 300.0
RATE = 9000
"""Bytes per second."""
SILENCE = 5.0
"""Liveness time in seconds: long enough for a busy machine, shorter than half of a transfer."""
BROKER = ("--heartbeat-interval", "0.5", "--liveness", "10")
LARGE = {"num_images": 10, "width": 512, "height": 512}
SMALL = {"width": 64, "height": 64}
SLOW_STEPS = (
    *("--backend", "simulated", "--max-batch-size", "4"),
    *("--simulated-batch-seconds", "15", "--simulated-image-seconds", "0"),
)


@pytest.fixture
def start(fleet):
    """Start a broker and a worker with a slow link; return the proxy and a client."""
    fleet.start_broker(*BROKER)
    opened = []

    def start(*options, **rates):
        opened.append(TcpProxy(fleet.brokers["broker"].backend, latency=0.02, **rates))
        endpoint = opened[0].endpoint
        fleet.spawn("worker", ["imagegen-worker", "--broker", endpoint, "--name", "worker", *options])
        opened.append(Client(fleet.frontend))
        fleet.wait_for_workers(opened[1], 1)
        return opened

    yield start
    assert fleet.terminate("worker") == 0
    for each in opened:
        each.close()


def small_requests_until(client, job):
    """Send small requests, one after the other, until a job is done; return their number."""
    count = 0
    while not job.done():
        assert client.submit("a small one", seed=count, **SMALL).result(PATIENCE).attempt == 1
        count += 1
    return count


def check(fleet, client, images):
    """Check that each image was generated once, and that nothing counted as dead, lost or requeued."""
    fleet.wait_until(
        lambda: client.stats()["per_gpu_stats"][0]["total_images"] >= images, "a heartbeat with the last image"
    )
    stats = client.stats()
    assert stats["per_gpu_stats"][0]["total_images"] == images
    assert (stats["totals"]["workers_lost"], stats["totals"]["requeued"]) == (0, {})


def test_a_long_answer_of_a_worker_delays_no_other(fleet, start):
    proxy, client = start(*SIMULATED, up=RATE)
    before = proxy.passed["up"]
    job = client.submit("a large one", seed=1, **LARGE)
    small = small_requests_until(client, job)
    assert job.result(PATIENCE).attempt == 1
    assert proxy.passed["up"] - before > 2 * SILENCE * RATE
    assert small > 1
    check(fleet, client, LARGE["num_images"] + small)


def test_a_long_input_of_a_worker_delays_no_other(fleet, start):
    proxy, client = start(*SIMULATED, down=RATE)
    before = proxy.passed["down"]
    job = client.submit("from an image", seed=1, image=Image.effect_noise((350, 350), 100), **SMALL)
    small = small_requests_until(client, job)
    assert job.result(PATIENCE).attempt == 1
    assert proxy.passed["down"] - before > 2 * SILENCE * RATE
    assert small > 1
    check(fleet, client, 1 + small)


def test_progress_and_previews_do_not_accumulate_on_a_slow_link(fleet, start):
    """Four requests with ten steps a second and previews have several times the bytes that the link transfers."""
    proxy, client = start(*SLOW_STEPS, up=RATE)
    before = proxy.passed["up"]
    jobs = [
        client.submit("p", seed=n, num_inference_steps=150, width=512, height=512, preview=True) for n in range(4)
    ]
    results = [job.result(PATIENCE) for job in jobs]
    assert [result.attempt for result in results] == [1] * 4
    print(proxy.passed["up"] - before, "bytes")
    check(fleet, client, 4)

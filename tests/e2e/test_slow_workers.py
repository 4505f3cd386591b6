"""A worker behind a link on which one answer or input image takes longer than the liveness time."""

import time

import pytest
from PIL import Image

from imagegen_client import Client
from tests.e2e.conftest import SIMULATED
from tests.tcp_proxy import TcpProxy

PATIENCE = 300.0
RATE = 9000
"""Bytes per second."""
SILENCE = 5.0
"""Liveness time in seconds: long enough for a busy machine, shorter than a transfer."""
BROKER = ("--heartbeat-interval", "0.5", "--liveness", "10")
LARGE = {"num_images": 16, "width": 512, "height": 512}
SMALL = {"width": 64, "height": 64}


@pytest.fixture
def proxied(fleet):
    """A broker, and a proxy in front of its port for workers."""
    fleet.start_broker(*BROKER)
    with TcpProxy(fleet.brokers["broker"].backend, latency=0.02) as proxy:
        yield proxy


@pytest.fixture
def slow_client(fleet, proxied):
    """A client of a fleet whose one worker is behind the proxy."""
    fleet.spawn("worker", ["imagegen-worker", "--broker", proxied.endpoint, "--name", "worker", *SIMULATED])
    with Client(fleet.frontend) as client:
        fleet.wait_for_workers(client, 1)
        yield client
        assert fleet.terminate("worker") == 0


def small_requests_until(client, job):
    """Send small requests, one after the other, until a job is done; return their number."""
    count = 0
    while not job.done():
        result = client.submit("a small one", seed=count, **SMALL).result(PATIENCE)
        assert result.attempt == 1
        count += 1
    return count


def check(fleet, client, images):
    """Check that each image was generated once, and that nothing counted as dead or lost."""
    fleet.wait_until(
        lambda: client.stats()["per_gpu_stats"][0]["total_images"] >= images, "a heartbeat with the last image"
    )
    stats = client.stats()
    assert stats["per_gpu_stats"][0]["total_images"] == images
    assert stats["totals"]["workers_lost"] == 0
    assert set(stats["totals"]["requeued"]) <= {"worker_reconnected"}


def test_an_answer_that_takes_longer_than_the_liveness_time_delays_no_other(fleet, proxied, slow_client):
    proxied.set_rates(up=RATE)
    before = proxied.bytes["up"]
    job = slow_client.submit("a large one", seed=1, **LARGE)
    small = small_requests_until(slow_client, job)
    assert job.result(PATIENCE).attempt == 1
    assert proxied.bytes["up"] - before > 2 * SILENCE * RATE
    assert small > 1
    check(fleet, slow_client, 16 + small)


def test_an_input_image_that_takes_longer_than_the_liveness_time_delays_no_other(fleet, proxied, slow_client):
    proxied.set_rates(down=RATE)
    before = proxied.bytes["down"]
    picture = Image.effect_noise((350, 350), 100)
    job = slow_client.submit("from a picture", seed=1, image=picture, **SMALL)
    small = small_requests_until(slow_client, job)
    assert job.result(PATIENCE).attempt == 1
    assert proxied.bytes["down"] - before > 2 * SILENCE * RATE
    assert small > 1
    check(fleet, slow_client, 1 + small)


@pytest.mark.parametrize(
    ("direction", "fields"), [("up", {**LARGE, "num_images": 10}), ("down", {**SMALL, "image": True})]
)
def test_a_transfer_resumes_after_resets_in_the_middle_of_a_frame(fleet, proxied, slow_client, direction, fields):
    proxied.set_rates(up=3 * RATE, down=3 * RATE)
    if "image" in fields:
        fields = {**fields, "image": Image.effect_noise((350, 350), 100)}
    before = proxied.bytes[direction]
    proxied.reset_after(direction, 60_000)
    job = slow_client.submit("a large one", seed=1, **fields)
    end = time.monotonic() + PATIENCE
    while proxied.bytes[direction] - before < 60_000:
        assert time.monotonic() < end
        time.sleep(0.05)
    proxied.reset_after(direction, 40_000)
    result = job.result(PATIENCE)
    assert result.attempt == 1
    assert 100_000 < proxied.bytes[direction] - before < 200_000, "what has arrived is not sent again"
    check(fleet, slow_client, fields.get("num_images", 1))

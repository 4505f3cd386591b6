"""The command and the gateway state the shape of a request in its header, as the Python client does."""

import threading

import msgspec
import pytest

from imagegen_protocol.costs import RequestShape
from tests.e2e.conftest import command
from tests.raw import Peers, ready
from tools.fleet import Fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A broker for which a worker that sends no heartbeats stays alive."""
    with Fleet(log_folder=tmp_path_factory.mktemp("logs")) as fleet:
        fleet.start_broker("--heartbeat-interval", "1", "--liveness", "100")
        yield fleet


@pytest.fixture
def worker(fleet):
    """A raw worker."""
    peers = Peers()
    (endpoints,) = fleet.brokers.values()
    worker = peers(endpoints.backend)
    ready(worker)
    yield worker
    worker.send({"type": "goodbye"})
    peers.close()


def shape_of_work(worker, send):
    """Return the shape in the WORK for a request that `send` sends on another thread."""
    thread = threading.Thread(target=send)
    thread.start()
    work, _ = worker.receive("work")
    error = {"type": "error", "request_id": work["request_id"], "code": "generation_failed", "message": "enough"}
    worker.send(error)
    thread.join()
    return msgspec.convert(work["shape"], RequestShape)


def test_the_command_states_the_shape(fleet, worker, tmp_path):
    options = ("--size", "640x384", "--steps", "12", "--lora", "ink")

    def generate():
        command(
            "imagegen", "generate", "a cat", "--broker", fleet.frontend, "--out", str(tmp_path / "image.png"),
            *options, check=False,
        )  # fmt: skip

    shape = RequestShape(width=640, height=384, num_inference_steps=12, loras=["ink"])
    assert shape_of_work(worker, generate) == shape


def test_the_gateway_states_the_shape(gateway, worker):
    def generate():
        body = {"prompt": "a cat", "size": "640x384", "num_inference_steps": 12}
        gateway.http.post("/v1/images/generations", json=body)

    shape = RequestShape(width=640, height=384, num_inference_steps=12)
    assert shape_of_work(worker, generate) == shape

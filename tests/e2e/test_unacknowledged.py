"""A client that acknowledges nothing, and a worker that reports an infinite speed, besides correct peers."""

import json
import math
import os
import urllib.request

import pytest

from imagegen_client import Client
from tests.e2e.conftest import PATIENT, start_simulated
from tests.raw import Peers, ready, submit

MOST = 40
FREE = ("--backend", "simulated", "--simulated-batch-seconds", "0", "--simulated-image-seconds", "0")


@pytest.fixture
def connect():
    peers = Peers()
    yield peers
    peers.close()


def test_a_client_that_acknowledges_nothing_gets_at_most_its_maximum_of_answers(fleet, connect):
    fleet.start_broker(*PATIENT, "--max-unacknowledged-per-client", str(MOST))
    with Client(fleet.frontend) as honest:
        start_simulated(fleet, honest, "sim", options=FREE)
        silent = connect(fleet.frontend)
        submitted = {os.urandom(16) for _ in range(5 * MOST)}
        for request_id in submitted:
            submit(silent, request_id)
        received = {silent.receive("result")[0]["request_id"] for _ in range(MOST)}
        assert len(received) == MOST
        for seed in range(5 * MOST):
            assert honest.generate("a red circle", seed=seed, num_inference_steps=1, width=64, height=64).images
        statistics = honest.stats()
        assert statistics["totals"]["dispatched"] == MOST + 5 * MOST, (
            "no further request of the silent client is dispatched"
        )
        assert statistics["held_clients"] == 1
        assert statistics["queued_requests"] == 4 * MOST
        while received != submitted:
            silent.send({"type": "ack", "request_ids": list(received)})
            received.add(silent.receive("result")[0]["request_id"])
        silent.send({"type": "ack", "request_ids": list(received)})
        silent.send({"type": "goodbye"})
        assert honest.stats()["totals"]["requeued"] == {}


def test_a_worker_that_reports_an_infinite_speed_does_not_end_the_broker(fleet, connect):
    place = fleet.start_broker(*PATIENT, "--strategy", "least-wait")
    with Client(fleet.frontend) as client:
        worker = connect(place.backend)
        session = ready(worker, models=["simulated"])["session"]
        for speed in (math.inf, math.nan, 0.0, 1e-300, 1e300):
            worker.send({"type": "heartbeat", "session": session, "seconds_per_image": speed})
            error, _ = worker.receive("error")
            assert error["code"] == "protocol_error"
            assert "seconds_per_image" in error["message"]
        with urllib.request.urlopen(f"{place.http}/stats") as page:
            json.loads(page.read(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        worker.send({"type": "goodbye"})
        start_simulated(fleet, client, "sim", options=FREE)
        assert client.generate("a red circle", seed=1, num_inference_steps=1, width=64, height=64).images

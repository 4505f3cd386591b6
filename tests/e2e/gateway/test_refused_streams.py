"""Streams that are refused have the status of the refusal, so that OpenAI's client raises and retries."""

import io
import signal

import openai
import pytest
from msgspec.structs import astuple
from PIL import Image

from imagegen_client import Client
from tests.e2e.conftest import PATIENT
from tests.e2e.gateway.conftest import QUICK, Gateway
from tools.fleet import Fleet


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    """A broker with a maximum of one request, and a fast worker."""
    with Fleet(log_folder=tmp_path_factory.mktemp("logs")) as fleet:
        fleet.start_broker(*PATIENT, "--max-requests", "1")
        fleet.start_worker("sim", "--gpu", "0", "--backend", "simulated", *QUICK)
        with Client(fleet.frontend) as client:
            fleet.wait_for_workers(client, 1)
        yield fleet


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), ())
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


def stream(client, **body):
    return client.images.generate(**{"prompt": "x", "size": "64x64", "stream": True, **body})


@pytest.mark.parametrize("partial_images", [0, 2])
@pytest.mark.parametrize(
    ("body", "kind", "status", "code", "param"),
    [
        ({"model": "nope"}, openai.NotFoundError, 404, "model_not_found", "model"),
        ({"size": "8192x64"}, openai.BadRequestError, 400, "invalid_request", "size"),
        (
            {"extra_body": {"timeout_seconds": 1e-6}},
            openai.InternalServerError,
            504,
            "deadline_exceeded",
            None,
        ),
    ],
    ids=["model", "size", "deadline"],
)
def test_a_refused_stream_has_the_status_of_the_refusal(gateway, body, kind, status, code, param, partial_images):
    with gateway.openai() as client, pytest.raises(kind) as caught:
        stream(client, partial_images=partial_images, **body)
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (status, code, param)
    assert caught.value.response.headers["content-type"] == "application/json"


def test_a_refused_edit_has_the_status_of_the_refusal(gateway, png):
    with gateway.openai() as client, pytest.raises(openai.NotFoundError):
        client.images.edit(image=png, prompt="x", model="nope", stream=True)


@pytest.fixture
def png():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, format="PNG")
    return buffer.getvalue()


def test_openais_client_retries_a_stream_that_a_full_broker_refuses(fleet, gateway, broker_client):
    statuses = []

    def on_response(response):
        statuses.append((response.status_code, response.headers.get("retry-after")))
        if len(statuses) == 1:
            fleet.processes["sim"].send_signal(signal.SIGCONT)

    def held_requests():
        return sum(astuple(broker_client.stats().requests))

    fleet.wait_until(lambda: held_requests() == 0, "an empty broker")
    fleet.processes["sim"].send_signal(signal.SIGSTOP)
    held = broker_client.submit("held", width=64, height=64)
    fleet.wait_until(lambda: held_requests() == 1, "a request that fills the broker")
    http = openai.DefaultHttpxClient(event_hooks={"response": [on_response]})
    with gateway.openai(max_retries=5, http_client=http) as client:
        events = list(stream(client))
    assert held.result(60).images
    assert [event.type for event in events] == ["image_generation.completed"]
    assert statuses[0][0] == 503
    assert int(statuses[0][1]) >= 1
    assert [status for status, _ in statuses[1:]][-1] == 200

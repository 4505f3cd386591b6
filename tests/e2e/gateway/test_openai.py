"""The images API with OpenAI's client."""

import asyncio
import base64
import io

import openai
import pytest
from openai import AsyncOpenAI
from PIL import Image

from imagegen_protocol.limits import MAX_RANDOM_SEED
from imagegen_protocol.statistics import Statistics, from_json
from tests.e2e.gateway.conftest import Gateway


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """One gateway for all tests of this file; no test changes its state."""
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), ())
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


@pytest.fixture
def client(gateway):
    with gateway.openai() as client:
        yield client


def decode(b64_json):
    image = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    image.load()
    return image


def encode(mode="RGB", color=(200, 30, 30), size=(64, 48), format="PNG"):
    buffer = io.BytesIO()
    Image.new(mode, size, color).save(buffer, format=format)
    return buffer.getvalue()


def test_images_are_generated_with_the_given_parameters(client):
    response = client.images.generate(
        prompt="a red circle",
        n=2,
        size="64x48",
        extra_body={"seed": 7, "num_inference_steps": 4, "guidance_scale": 3.5, "negative_prompt": "blue"},
    )
    assert [decode(image.b64_json).size for image in response.data] == [(64, 48), (64, 48)]
    assert [image.seed for image in response.data] == [7, 8]
    assert (response.size, response.output_format, response.model) == ("64x48", "png", "simulated")
    assert len(response._request_id) == 32


def test_the_same_seed_gives_the_same_image(client):
    one, two = (client.images.generate(prompt="x", size="64x64", extra_body={"seed": 3}) for _ in range(2))
    assert one.data[0].b64_json == two.data[0].b64_json


def test_random_seeds_are_exact_for_readers_of_doubles(gateway, client):
    assert gateway.job(prompt="x", n=2)["seed"] <= MAX_RANDOM_SEED
    response = client.images.generate(prompt="x", size="64x64", n=2)
    [event] = client.images.generate(prompt="x", size="64x64", stream=True)
    assert max(response.data[1].seed, event.seed) < 2**53


def test_a_given_seed_is_returned_exactly(client):
    response = client.images.generate(prompt="x", size="64x64", n=2, extra_body={"seed": 2**63 - 1})
    assert [image.seed for image in response.data] == [2**63 - 1, 0]


def test_the_output_format_is_selected(client):
    response = client.images.generate(prompt="x", size="64x64", output_format="jpeg", output_compression=50)
    assert decode(response.data[0].b64_json).format == "JPEG"
    assert response.output_format == "jpeg"


def test_images_are_returned_as_urls(gateway, client):
    response = client.images.generate(prompt="x", size="64x64", response_format="url")
    fetched = gateway.http.get(response.data[0].url)
    assert (fetched.status_code, fetched.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(fetched.content)).size == (64, 64)
    assert gateway.http.get(response.data[0].url.replace(".png", "A.png")).status_code == 404


def test_the_async_client(gateway):
    async def both():
        async with gateway.openai(kind=AsyncOpenAI) as client:
            responses = await asyncio.gather(
                *(client.images.generate(prompt=f"number {i}", size="64x64") for i in range(5))
            )
            stream = await client.images.generate(prompt="x", size="64x64", stream=True, partial_images=1)
            return responses, [event async for event in stream]

    responses, events = asyncio.run(both())
    assert [decode(response.data[0].b64_json).size for response in responses] == 5 * [(64, 64)]
    assert events[-1].type == "image_generation.completed"


def test_a_stream_has_partial_images_and_the_image(client):
    events = list(client.images.generate(prompt="x", size="64x64", stream=True, partial_images=3))
    kinds = [event.type for event in events]
    assert kinds == ["image_generation.partial_image"] * (len(kinds) - 1) + ["image_generation.completed"]
    assert 1 <= len(kinds) - 1 <= 3
    assert [event.partial_image_index for event in events[:-1]] == list(range(len(kinds) - 1))
    assert all(max(decode(event.b64_json).size) <= 64 for event in events)
    assert events[-1].usage.total_tokens == 0


def test_a_stream_without_partial_images(client):
    [event] = client.images.generate(prompt="x", size="64x64", n=1, stream=True)
    assert (event.type, event.size) == ("image_generation.completed", "64x64")


def test_an_edit_has_the_size_of_its_image(client):
    response = client.images.edit(image=encode(), prompt="make it blue", extra_body={"strength": 0.5, "seed": 1})
    assert decode(response.data[0].b64_json).size == (64, 48)


def test_an_edit_with_a_mask_and_partial_images(client):
    mask = encode("RGBA", (0, 0, 0, 0))
    events = list(client.images.edit(image=encode(), mask=mask, prompt="x", stream=True, partial_images=1))
    assert events[-1].type == "image_edit.completed"
    assert {event.type for event in events[:-1]} <= {"image_edit.partial_image"}


def test_an_edit_accepts_a_list_of_one_image(client):
    assert client.images.edit(image=[encode()], prompt="x", size="32x32").size == "32x32"


def test_loras_in_a_form_are_json(client):
    with pytest.raises(openai.BadRequestError, match="loras: expected JSON such as"):
        client.images.edit(image=encode(), prompt="x", extra_body={"loras": "ink"})
    with pytest.raises(openai.BadRequestError, match=r"loras\.0\.scale: input should be less"):
        client.images.edit(image=encode(), prompt="x", extra_body={"loras": '[{"name": "ink", "scale": 11}]'})


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"no image", "image: expected a PNG, JPEG or WebP image, got 8 bytes of text"),
        (b"", "image: expected a PNG, JPEG or WebP image, got an empty file"),
        ([encode()] * 11, "image: expected 1 to 10 images, got 11"),
    ],
    ids=["bytes", "empty", "eleven"],
)
def test_invalid_images_of_an_edit_are_rejected(client, image, message):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.edit(image=image, prompt="x")
    assert (caught.value.body["message"], caught.value.body["param"]) == (message, "image")


def test_several_images_are_references(client, gateway):
    images = client.images.edit(image=[encode(), encode()], prompt="x", size="32x32")
    assert images.size == "32x32"
    assert client.models.retrieve("simulated").parameters["images"] == {"max_items": 4}
    files = [("image", ("a.png", encode())), ("image", ("b.png", encode()))]
    form = gateway.http.post("/v1/images/edits", data={"prompt": "x"}, files=files)
    assert form.status_code == 200
    with pytest.raises(openai.BadRequestError, match="images: expected no mask_image beside them"):
        client.images.edit(image=[encode(), encode()], mask=encode(), prompt="x")
    with pytest.raises(
        openai.BadRequestError, match="simulated accepts at most 4 reference images; got 5"
    ) as caught:
        client.images.edit(image=[encode()] * 5, prompt="x")
    assert caught.value.param == "images"


def test_models_are_listed_with_their_parameters(client):
    [model] = client.models.list()
    assert (model.id, model.object, model.owned_by) == ("simulated", "model", "imagegen")
    assert client.models.retrieve("simulated").id == "simulated"
    assert (model.object, model.owned_by, model.default) == ("model", "imagegen", True)
    assert model.parameters["num_inference_steps"] == {"default": 20, "minimum": 1, "maximum": 1000}
    assert model.parameters["strength"] == {"default": 0.8, "exclusive_minimum": 0, "maximum": 1}
    assert "scheduler" not in model.parameters
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no/such")


@pytest.mark.parametrize(
    ("body", "status", "code", "param", "message"),
    [
        ({}, 400, "missing_field", "prompt", "prompt: required, but missing"),
        ({"prompt": 5}, 400, "invalid_value", "prompt", "prompt: input should be a valid string, got 5"),
        (
            {"prompt": "x", "n": 17},
            400,
            "invalid_value",
            "n",
            "n: input should be less than or equal to 16, got 17",
        ),
        ({"prompt": "x", "n": "2"}, 400, "invalid_value", "n", "n: input should be a valid integer, got '2'"),
        ({"prompt": "x", "bogus": 1}, 400, "unknown_field", "bogus", "bogus: unknown field"),
        ({"prompt": "x", "size": "big"}, 400, "invalid_value", "size", "size: string should match pattern"),
        ({"prompt": "x", "size": "7x64"}, 400, "invalid_request", "size", "size: expected `int` >= 8, got 7"),
        (
            {"prompt": "x", "strength": 0.5},
            400,
            "invalid_request",
            "strength",
            "strength: expected only with an image",
        ),
        (
            {"prompt": "x", "partial_images": 1},
            400,
            "invalid_value",
            "partial_images",
            "partial_images: requires stream",
        ),
        (
            {"prompt": "x", "output_compression": 5},
            400,
            "invalid_request",
            "output_compression",
            "output_compression: expected none for the output_format 'png'",
        ),
        ({"prompt": "x", "model": "nope"}, 404, "model_not_found", "model", "no worker serves the model 'nope'"),
    ],
)
def test_invalid_requests_are_rejected(gateway, body, status, code, param, message):
    response = gateway.http.post("/v1/images/generations", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["message"].startswith(message)
    assert error["type"] == "invalid_request_error"


def test_invalid_json_is_rejected(gateway):
    headers = {"content-type": "application/json"}
    response = gateway.http.post("/v1/images/generations", content=b'{"prompt": ', headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_json")


def test_a_request_fails_after_its_timeout(gateway):
    body = {"prompt": "x", "size": "64x64", "timeout_seconds": 0.000001}
    response = gateway.http.post("/v1/images/generations", json=body)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert response.headers["x-should-retry"] == "false"


def test_unknown_paths_and_methods_are_rejected(gateway):
    assert gateway.http.get("/nothing").json()["error"]["code"] == "not_found"
    response = gateway.http.get("/v1/images/generations")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")


def test_stats_returns_the_statistics_of_the_broker(gateway, broker_client):
    assert set(gateway.http.get("/stats").json()) == set(Statistics.__struct_fields__)
    shown = from_json(gateway.http.get("/stats").content)
    assert shown.epoch == broker_client.stats().epoch


def test_probes_and_metrics(gateway):
    assert gateway.http.get("/healthz").text == "ok\n"
    assert gateway.http.get("/readyz").text == "ok\n"
    text = gateway.http.get("/metrics").text
    assert 'imagegen_gateway_requests_total{method="GET",path="/readyz",status="200"} 1.0' in text
    assert "imagegen_gateway_jobs 0.0" in text

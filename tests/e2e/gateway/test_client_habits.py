"""Requests as existing clients send them: other content types, names, headers and paths."""

import base64
import io
import json
import subprocess

import httpx2
import openai
import pytest
from PIL import Image

from tests.e2e.gateway.conftest import Gateway
from tests.programs import needs

ORIGIN = "https://app.example.org"


def png(size=(64, 48), mode="RGB"):
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="PNG")
    return buffer.getvalue()


IMAGE = base64.b64encode(png()).decode()
IMAGE_URL = f"data:image/png;base64,{IMAGE}"


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """One gateway for all tests of this file; no test changes its state."""
    options = ("--cors-origin", ORIGIN, "--model-alias", "sdxl=simulated", "--unknown-models", "default")
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), options)
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


def error(response):
    assert response.headers["x-request-id"]
    body = response.json()["error"]
    return response.status_code, body["code"], body["param"]


# ---- bodies ----------------------------------------------------------------------------------------------


@needs("curl")
def test_curl_without_a_content_type(gateway):
    url = f"{gateway.url}/v1/images/generations"
    curl = ["curl", "-s", "--noproxy", "*", url, "-d", '{"prompt": "x", "size": "64x64"}']
    assert json.loads(subprocess.run(curl, capture_output=True, check=True).stdout)["data"]


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs", "/v1/images/edits"])
def test_json_is_accepted_with_any_content_type(gateway, path, content_type):
    body = {"prompt": "x", "size": "64x64"} | ({"image": IMAGE} if path.endswith("edits") else {})
    headers = {"Content-Type": content_type} if content_type else {}
    response = gateway.http.post(path, content=json.dumps(body).encode(), headers=headers)
    assert response.status_code in (200, 202), response.text


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/jobs"])
def test_a_form_where_json_is_expected_names_the_header(gateway, path):
    form = gateway.http.post(path, data={"prompt": "x"}, files={"image": b"x"})
    assert error(form) == (400, "invalid_json", None)
    assert "expects JSON (Content-Type: application/json)" in form.json()["error"]["message"]
    encoded = gateway.http.post(path, data={"prompt": "x"})
    assert error(encoded) == (400, "invalid_json", None)
    assert "expected JSON (Content-Type: application/json)" in encoded.json()["error"]["message"]


@pytest.mark.parametrize(
    "images",
    [
        {"image": IMAGE},
        {"image": IMAGE_URL, "mask": IMAGE_URL},
        {"image": [IMAGE_URL]},
        {"image[]": IMAGE_URL},
        {"images": [{"image_url": IMAGE_URL}], "mask": {"image_url": IMAGE_URL}},
    ],
)
def test_an_edit_is_accepted_as_json(gateway, images):
    body = {"prompt": "x", "strength": 0.5, "n": 1, "loras": [], "stream": False, "user": None, **images}
    response = gateway.http.post("/v1/images/edits", json=body)
    assert response.status_code == 200, response.text
    assert response.json()["size"] == "64x48"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ([], "body: expected a JSON object with the fields of the form"),
        ({"image": 5}, 'image: expected base64, a data: URL, or {"image_url": "data:…"}'),
        ({"image": "https://example.org/a.png"}, "image: expected an image as base64 or a data: URL"),
        ({"images": [IMAGE] * 11}, "image: expected 1 to 10 images, got 11"),
        ({}, "image: expected 1 to 10 images, got 0"),
    ],
)
def test_invalid_json_of_an_edit_is_rejected(gateway, body, message):
    body = {"prompt": "x", **body} if isinstance(body, dict) else body
    response = gateway.http.post("/v1/images/edits", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(message)


def test_a_field_of_a_form_is_rejected_if_it_is_sent_twice(gateway):
    twice = [("image", ("a.png", png())), *[("mask", ("b.png", png()))] * 2]
    response = gateway.http.post("/v1/images/edits", data={"prompt": "x"}, files=twice)
    assert error(response) == (400, "invalid_value", "mask")
    assert response.json()["error"]["message"] == "mask: expected one image, got 2 fields of this name"
    files = [("image", ("a.png", png())), ("prompt", (None, "a")), ("prompt", (None, "b"))]
    response = gateway.http.post("/v1/images/edits", files=files)
    assert response.json()["error"]["message"] == "prompt: expected it once, got 2 fields of this name"


def test_text_and_files_in_the_wrong_fields_of_a_form(gateway):
    files = {"image": (None, IMAGE_URL), "prompt": (None, "x")}
    assert gateway.http.post("/v1/images/edits", files=files).status_code == 200, "base64 is accepted"
    response = gateway.http.post("/v1/images/edits", files={"image": (None, "cat.png"), "prompt": (None, "x")})
    expected = "image: expected a file (curl -F image=@FILE), base64 or a data: URL, got other text"
    assert (response.status_code, response.json()["error"]["message"]) == (400, expected)
    response = gateway.http.post("/v1/images/edits", files={"image": png(), "prompt": ("p.txt", b"x")})
    expected = "prompt: expected text, got a file (curl -F 'prompt=<FILE' sends its text)"
    assert (response.status_code, response.json()["error"]["message"]) == (400, expected)


def test_an_edit_with_another_content_type_names_the_allowed_ones(gateway):
    response = gateway.http.post("/v1/images/edits", data={"prompt": "x"})
    message = (
        "expected a form (multipart/form-data, curl -F) or JSON (Content-Type: application/json), "
        "got Content-Type: application/x-www-form-urlencoded"
    )
    assert (response.status_code, response.json()["error"]["message"]) == (400, message)


# ---- fields ----------------------------------------------------------------------------------------------


def test_width_height_and_steps_are_accepted(gateway):
    body = {"prompt": "x", "width": 64, "height": 48, "steps": 3}
    assert gateway.http.post("/v1/images/generations", json=body).json()["size"] == "64x48"
    same = {**body, "size": "64x48", "num_inference_steps": 3}
    assert gateway.http.post("/v1/images/generations", json=same).status_code == 200
    for other in ({"size": "64x64"}, {"num_inference_steps": 4}):
        response = gateway.http.post("/v1/images/generations", json={**body, **other})
        assert "another field of the request states" in response.json()["error"]["message"]
        assert error(response)[0] == 400
    assert error(gateway.http.post("/v1/images/generations", json={**body, "width": 7})) == (
        400,
        "invalid_value",
        "width",
    )


def test_extra_parameters_are_passed_to_the_model(gateway):
    extra = {"true_cfg_scale": 4.0}
    response = gateway.http.post("/v1/images/generations", json={"prompt": "x", "size": "64x64", "extra": extra})
    assert error(response) == (400, "invalid_request", "extra")
    assert "true_cfg_scale" in response.json()["error"]["message"], "the model is the one that rejects it"
    form = {"prompt": "x", "extra": json.dumps(extra)}
    response = gateway.http.post("/v1/images/edits", data=form, files={"image": png()})
    assert "true_cfg_scale" in response.json()["error"]["message"]
    response = gateway.http.post("/v1/images/generations", json={"prompt": "x", **extra})
    assert "belong in `extra`" in response.json()["error"]["message"]


# ---- models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["sdxl", "gpt-image-1", "gpt-image-2", "dall-e-3"])
def test_other_names_use_a_served_model(gateway, model):
    with gateway.openai() as client:
        response = client.images.generate(prompt="x", model=model, size="64x64")
        assert response.model == "simulated"
        assert client.models.retrieve(model).alias_of == "simulated"
    job = gateway.job(prompt="x", model=model)
    assert gateway.wait(job["id"])["state"] == "succeeded"


def test_an_alias_is_listed_as_a_model(gateway):
    with gateway.openai() as client:
        own, alias = client.models.list().data
    assert (own.id, own.default, hasattr(own, "alias_of")) == ("simulated", True, False)
    assert (alias.id, alias.default, alias.alias_of) == ("sdxl", False, "simulated")
    assert alias.parameters == own.parameters


def test_images_of_dall_e_are_urls(gateway):
    with gateway.openai() as client:
        url, b64, default = (
            client.images.generate(prompt="x", size="64x64", **options).data[0]
            for options in (
                {"model": "dall-e-3"},
                {"model": "dall-e-3", "response_format": "b64_json"},
                {"model": "gpt-image-1"},
            )
        )
        [event] = client.images.generate(prompt="x", size="64x64", model="dall-e-3", stream=True)
    assert gateway.http.get(url.url).status_code == 200
    assert (url.b64_json, b64.url, default.url) == (None, None, None)
    assert event.b64_json


def test_the_default_response_format_is_a_setting(start_gateway):
    gateway = start_gateway("--default-response-format", "url")
    with gateway.openai() as client:
        assert client.images.generate(prompt="x", size="64x64").data[0].url.startswith(gateway.url)
        assert client.images.generate(prompt="x", size="64x64", response_format="b64_json").data[0].b64_json
        with pytest.raises(openai.NotFoundError, match="no worker serves the model 'dall-e-3'"):
            client.images.generate(prompt="x", model="dall-e-3")


# ---- headers ---------------------------------------------------------------------------------------------


def test_a_page_may_send_the_headers_of_openais_client(gateway):
    asked = "authorization,content-type,x-stainless-arch,x-stainless-os,x-stainless-retry-count"
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": asked,
        "Access-Control-Request-Private-Network": "true",
    }
    allowed = gateway.http.options("/v1/images/generations", headers=headers)
    assert (allowed.status_code, allowed.headers["access-control-allow-headers"]) == (200, asked)
    assert allowed.headers["access-control-allow-private-network"] == "true"
    other = gateway.http.options(
        "/v1/images/generations", headers={**headers, "Origin": "https://evil.example.org"}
    )
    assert other.status_code == 400


@pytest.mark.parametrize("body", [{"prompt": "x", "size": "64x64"}, {}])
def test_a_page_may_read_the_headers_of_responses(gateway, body):
    response = gateway.http.post("/v1/images/generations", json=body, headers={"Origin": ORIGIN})
    assert response.headers["access-control-allow-origin"] == ORIGIN
    exposed = response.headers["access-control-expose-headers"].lower().split(", ")
    assert {"x-request-id", "retry-after", "x-should-retry", "x-ratelimit-remaining-requests"} <= set(exposed)


def test_every_response_has_a_request_id_and_a_time(gateway):
    generated = {"prompt": "x", "size": "64x64"}
    for method, path, options in (
        ("POST", "/v1/images/generations", {"json": generated}),
        ("POST", "/v1/images/generations", {"json": {**generated, "stream": True}}),
        ("POST", "/v1/images/generations", {"json": {**generated, "timeout_seconds": 0.000001}}),
        ("POST", "/v1/images/generations", {"content": b"{"}),
        ("GET", "/v1/models", {}),
        ("GET", "/v1/nothing", {}),
    ):
        response = gateway.http.request(method, path, **options)
        assert len(response.headers["x-request-id"]) == 32, path
        assert float(response.headers["openai-processing-ms"]) >= 0
    with gateway.openai() as client, pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="x", n=17)
    assert len(caught.value.request_id) == 32


def test_the_rate_limit_of_a_key_counts_images(start_gateway):
    gateway = start_gateway("--auth", "keys")
    headers = {"Authorization": f"Bearer {gateway.add_key('alice', '--requests-per-minute', '4')}"}
    body = {"prompt": "x", "size": "64x64"}
    first = gateway.http.post("/v1/images/generations", json=body, headers=headers)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == (
        "4",
        "3",
    )
    several = gateway.http.post("/v1/images/generations", json={**body, "n": 16}, headers=headers)
    assert (several.status_code, several.headers["x-ratelimit-remaining-requests"]) == (200, "0")
    rejected = gateway.http.post("/v1/jobs", json=body, headers=headers)
    assert rejected.status_code == 429
    assert float(rejected.headers["x-ratelimit-reset-requests"].removesuffix("s")) > 60
    assert int(rejected.headers["retry-after"]) > 60


def test_the_usage_of_a_response_is_zero(gateway):
    with gateway.openai() as client:
        assert client.images.generate(prompt="x", size="64x64").usage.total_tokens == 0


# ---- paths -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/models/", "/v1/jobs/", "/v1/models/simulated/"])
def test_a_slash_at_the_end_of_a_path_is_ignored(gateway, path):
    with httpx2.Client(base_url=gateway.url, trust_env=False, follow_redirects=False) as client:
        assert client.get(path).status_code == 200
    response = gateway.http.post("/v1/images/generations/", json={"prompt": "x", "size": "64x64"})
    assert response.status_code == 200


def test_the_location_of_a_job_is_inside_the_public_url(start_gateway):
    gateway = start_gateway("--public-url", "https://images.example.org/fleet")
    response = gateway.http.post("/v1/jobs/", json={"prompt": "x", "size": "64x64"})
    assert response.headers["location"] == f"https://images.example.org/fleet/v1/jobs/{response.json()['id']}"


# ---- limits ----------------------------------------------------------------------------------------------


def test_the_limits_of_a_key_apply_to_the_defaults_of_the_model(start_gateway):
    gateway = start_gateway("--auth", "keys")
    headers = {"Authorization": f"Bearer {gateway.add_key('alice', '--max-size', '100x200', '--max-steps', '5')}"}
    response = gateway.http.post("/v1/images/generations", json={"prompt": "x"}, headers=headers)
    width, height = map(int, response.json()["size"].split("x"))
    assert (width <= 100, height <= 200, abs(width / height - 1) < 0.1) == (True, True, True)
    parameters = gateway.http.get("/v1/models", headers=headers).json()["data"][0]["parameters"]
    assert (parameters["num_inference_steps"]["default"], parameters["width"]["default"]) == (5, width)


def test_an_image_beyond_the_limits_of_a_key_is_scaled_down(start_gateway):
    gateway = start_gateway("--auth", "keys")
    headers = {"Authorization": f"Bearer {gateway.add_key('alice', '--max-size', '128x128')}"}
    body = {"prompt": "x", "image": base64.b64encode(png((400, 200))).decode()}
    response = gateway.http.post("/v1/images/edits", json=body, headers=headers)
    assert response.json()["size"] == "128x64"


def test_a_size_beyond_the_maximum_of_all_requests(gateway):
    response = gateway.http.post("/v1/images/generations", json={"prompt": "x", "size": "8193x8"})
    assert response.json()["error"]["message"] == "size: the maximum width of requests is 8192, got 8193"


# ---- warnings --------------------------------------------------------------------------------------------


def test_a_scaled_image_is_reported(gateway):
    body = {"prompt": "x", "image": base64.b64encode(png((2000, 1000))).decode()}
    expected = ["image: scaled to 724x362 pixels, from 2000x1000"]
    response = gateway.http.post("/v1/images/edits", json=body)
    assert (response.json()["size"], response.json()["warnings"]) == ("724x362", expected)
    response = gateway.http.post("/v1/images/edits", json={**body, "stream": True})
    [data] = [line for line in response.text.splitlines() if line.startswith("data: {")]
    assert json.loads(data.removeprefix("data: "))["warnings"] == expected
    assert gateway.wait(gateway.job(**body, size="auto")["id"])["warnings"] == expected
    assert "warnings" not in gateway.http.post("/v1/images/edits", json={**body, "size": "2000x1000"}).json()

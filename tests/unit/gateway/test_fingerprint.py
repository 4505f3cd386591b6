"""The fingerprint that recognises a repeated job."""

import hashlib
import json

import pytest

from imagegen_gateway.routes.jobs import _fingerprint
from imagegen_gateway.schemas.requests import JobBody


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x"},
        {"prompt": 'ä "quoted" \\ \n 🦊', "size": "64x64", "n": 2, "seed": 5, "guidance_scale": 1.5},
        {"prompt": "x", "image": 'A"🦊' * 50_000, "loras": [{"scale": 1.0, "name": "b"}]},
    ],
)
def test_it_is_the_hash_of_the_body_as_json(fields):
    body = JobBody(**fields)
    text = json.dumps(body.model_dump(mode="json", exclude_none=True), sort_keys=True)
    assert _fingerprint(body) == hashlib.sha256(text.encode()).hexdigest()

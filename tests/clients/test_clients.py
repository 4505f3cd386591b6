"""Clients of OpenAI's images API that nobody adapted to the gateway; only their base URL is set."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.gateway.conftest import Gateway
from tests.programs import CLIENTS_PYTHON, NODE_CLIENTS, PYTHON_CLIENTS, needs

FOLDER = Path(__file__).parent
PROGRAMS = {
    "python": ([CLIENTS_PYTHON, FOLDER / "python_clients.py"], needs(PYTHON_CLIENTS)),
    "node": (["node", FOLDER / "node_clients.mjs"], needs(NODE_CLIENTS)),
}
USES = {
    ("python", "openai"): {"generate", "edit", "models", "stream", "invalid", "limited"},
    ("python", "openai-async"): {"generate", "edit", "invalid", "limited"},
    ("python", "litellm"): {"generate", "edit", "invalid", "limited"},
    ("python", "langchain"): {"generate", "invalid", "limited"},
    ("python", "haystack"): {"generate", "invalid", "limited"},
    ("python", "pydantic-ai"): {"generate", "edit", "invalid", "limited"},
    ("python", "agno"): {"generate", "limited"},
    ("node", "openai"): {"generate", "edit", "models", "stream", "invalid", "limited"},
    ("node", "ai-sdk"): {"generate", "edit", "invalid", "limited"},
    ("node", "langchain"): {"generate", "invalid"},
}
"""Uses of each client."""
CASES = [
    pytest.param(runtime, client, id=f"{runtime}-{client}", marks=PROGRAMS[runtime][1]) for runtime, client in USES
]
HIDDEN = ("PYTHONPATH", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy")
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "AGNO_TELEMETRY": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}
"""Settings without which some clients contact other hosts."""


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """A gateway that requires keys and accepts any name of a model."""
    options = ("--auth", "keys", "--unknown-models", "default")
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), options)
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


@pytest.fixture(scope="module")
def key(gateway):
    return gateway.add_key("clients")


@pytest.fixture(scope="module")
def limited_key(gateway):
    """A key that has reached its rate."""
    key = gateway.add_key("limited", "--requests-per-minute", "0.1")
    body = {"prompt": "x", "size": "64x64"}
    headers = {"Authorization": f"Bearer {key}"}
    assert gateway.http.post("/v1/images/generations", json=body, headers=headers).status_code == 200
    return key


@pytest.fixture
def run(gateway, key, limited_key, tmp_path):
    """A function that runs all uses of a client in a process of its own, and returns the outcomes."""
    image = tmp_path / "image.png"
    Image.new("RGB", (96, 64), "navy").save(image)
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN}

    def run(runtime, client):
        command = [*PROGRAMS[runtime][0], client, f"{gateway.url}/v1", key, limited_key, image]
        ended = subprocess.run(
            list(map(str, command)),
            env={**environment, **OFFLINE, "OPENAI_API_KEY": key},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
        )
        sys.stderr.write(ended.stderr)
        assert ended.returncode == 0, ended.stderr[-2000:]
        return json.loads(ended.stdout.strip().splitlines()[-1])

    return run


@pytest.mark.parametrize(("runtime", "client"), CASES)
def test_a_client_works_unchanged(run, runtime, client):
    outcomes = run(runtime, client)
    assert set(outcomes) == USES[runtime, client]
    for use, outcome in outcomes.items():
        match use:
            case "generate" | "edit" | "stream":
                size = [256, 256] if client == "agno" else [96, 64] if use == "edit" else [64, 64]
                expected = {"format": "PNG", "size": size}
                assert {name: outcome.get(name) for name in expected} == expected, (use, outcome)
            case "models":
                assert outcome == {"names": ["simulated"]}
            case "invalid":
                check_error(client, outcome["error"], 400, "BadRequestError")
            case "limited" if client == "agno":
                assert "limited to 0.1 images per minute" in outcome["message"]
            case "limited":
                check_error(client, outcome["error"], 429, "RateLimitError")
                if client.startswith("openai"):
                    assert int(outcome["error"]["retry_after"]) >= 1


def check_error(client, error, status, kind):
    assert error["status"] == status, error
    if client.startswith("openai"):
        assert kind in error["kinds"]
        assert len(error["request_id"]) == 32

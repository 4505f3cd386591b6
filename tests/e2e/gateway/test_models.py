"""`/v1/models` with workers that load models on demand."""

import asyncio

import pytest

from imagegen_client import AsyncClient
from tests.e2e.gateway.conftest import QUICK
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def worker_options():
    """Two models; the second is loaded on demand."""
    return (*QUICK, "--model", "first", "--model", "second", "--model-memory", "1GB")


def test_a_model_has_parameters_after_a_worker_has_loaded_it(gateway, broker_client):
    with gateway.openai() as client:
        first, second = client.models.list().data
        assert (first.id, first.default, first.parameters["width"]["default"]) == ("first", True, 256)
        assert (second.id, second.default) == ("second", False)
        assert not hasattr(second, "parameters")
        client.images.generate(prompt="x", model="second", size="64x64")
        # The broker's statistics may be half a second old.
        parameters = wait_until(
            lambda: getattr(client.models.retrieve("second"), "parameters", None),
            "the loaded model has parameters",
        )
        assert parameters == first.parameters
    capabilities = {model["model"]: model["takes"] for model in broker_client.models()}
    assert capabilities["first"] == capabilities["second"]
    assert capabilities["first"]["max_side"] == 4096


def test_the_async_client_lists_the_models(fleet):
    async def ask():
        async with AsyncClient(fleet.frontend) as client:
            return await client.models()

    assert [model["model"] for model in asyncio.run(ask())] == ["first", "second"]


def test_the_limits_of_a_key_apply_to_the_parameters(start_gateway):
    gateway = start_gateway("--auth", "keys")
    key = gateway.add_key(
        "alice", "--max-size", "100x200", "--max-steps", "5", "--model", "second", "--model", "first"
    )
    with gateway.openai(key) as client:
        first, second = client.models.list().data
    assert (first.default, second.default) == (False, True)
    assert first.parameters["width"]["maximum"] == 100
    assert first.parameters["num_inference_steps"]["maximum"] == 5

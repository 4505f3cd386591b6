"""The gateway does as its OpenAPI document says, whatever it is asked."""

import contextlib

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from tests.e2e.gateway.conftest import Gateway

NOT_ASKED = {
    # Rules between fields, and those of a model, stand in no schema.
    "positive_data_acceptance",
}


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """One whose key keeps the images small: they are many."""
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), ("--auth", "keys"))
    gateway.key = gateway.add_key("tester", "--max-size", "64x64")
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["right", "wrong"])
def test_it_does_as_it_says(gateway, mode):
    document = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    names = [name for name in CHECKS.get_all_names() if name not in NOT_ASKED]
    checks = CHECKS.get_by_names(names)
    headers = {"Authorization": f"Bearer {gateway.key}"}
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(mode))
        def ask(case):
            case.call_and_validate(headers=headers, checks=checks, timeout=60)

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # there is nothing to get wrong
            ask()

"""The gateway conforms to its OpenAPI document."""

import contextlib

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS

from tests.e2e.gateway.conftest import Gateway

SKIPPED_CHECKS = {
    # The schema does not contain the rules between fields and those of models.
    "positive_data_acceptance",
}


@pytest.fixture(scope="module")
def gateway(fleet, tmp_path_factory):
    """A gateway whose key limits the images to a small size, because there are many."""
    gateway = Gateway(fleet, "gateway", tmp_path_factory.mktemp("state"), ("--auth", "keys"))
    gateway.key = gateway.add_key("tester", "--max-size", "64x64")
    yield gateway
    gateway.close()
    assert fleet.terminate("gateway") == 0


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_responses_conform_to_the_schema(gateway, mode):
    document = schemathesis.openapi.from_url(f"{gateway.url}/openapi.json")
    names = [name for name in CHECKS.get_all_names() if name not in SKIPPED_CHECKS]

    headers = {"Authorization": f"Bearer {gateway.key}"}
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 14
    for operation in operations:

        @settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(mode))
        def check(case):
            response = case.call(headers=headers, timeout=60)
            # 504 is the correct response to a very short `timeout_seconds`.
            expected = ["not_a_server_error"] if response.status_code == 504 else []
            applied = CHECKS.get_by_names([name for name in names if name not in expected])
            transport = {"headers": headers, "timeout": 60}
            case.validate_response(response, applied, headers=headers, transport_kwargs=transport)

        with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # the operation has no input
            check()

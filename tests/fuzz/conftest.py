"""Shared by the tests of the targets."""

import pytest

from tests.fuzz import gateway


@pytest.fixture(scope="session", autouse=True)
def _close_gateway():
    """Close the gateway of the targets, whose threads would keep the process from its end."""
    yield
    gateway.close()

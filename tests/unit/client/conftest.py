"""Fixtures of the client core's tests."""

import pytest

from tests.unit.client.core_harness import connected


@pytest.fixture
def harness():
    return connected()

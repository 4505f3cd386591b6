"""A client core whose broker has spoken."""

import pytest

from tests.unit.client.desk import connected


@pytest.fixture
def desk():
    return connected()

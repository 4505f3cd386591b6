"""Shared by the tests of the targets."""

import pytest

from tests.fuzz import files, gateway


@pytest.fixture(scope="session", autouse=True)
def _close_targets():
    """Remove the files of the targets, and close their gateway, whose threads would keep the process alive."""
    yield
    gateway.close()
    files.close()

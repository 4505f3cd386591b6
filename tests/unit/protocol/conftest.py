"""The normative page, so that it can be held against the code."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def protocol_page():
    return (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()

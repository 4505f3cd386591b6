"""Shared by the tests of the worker."""

import logging

import pytest


@pytest.fixture
def clean_logging():
    """Put the handlers and levels back that `set_up` replaces."""
    root, own = logging.getLogger(), logging.getLogger("imagegen_worker")
    before = root.level, root.handlers[:], own.level
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    own.setLevel(before[2])

"""What holds for all tests."""

import os
import signal

import pytest
from hypothesis import settings

from imagegen_common import logs
from imagegen_worker.devices.mkl import MODE, VARIABLE
from tests import programs
from tests.order import longest_first

# MKL reads it once, at its first call. Tests of equal bits need it (see `tests/equality.py`); processes under test
# start without it, as users' do. An own value, even an empty one, stays.
os.environ.setdefault(VARIABLE, MODE)

# A job in the background ignores Ctrl-C, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests run in parallel: one thread for torch, in each process of the tests and in each that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine may take a second over anything.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


@pytest.fixture(autouse=True)
def umask_restored():
    """Give each test the umask of a shell: programs that run within a test may set another, for good."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def pytest_addoption(parser):
    """Add the option that sets the length of the simulation."""
    parser.addoption("--fleets", type=int, default=2400, help="number of simulated fleets, default 2400")


def pytest_collection_modifyitems(config, items):
    """Start the longest tests first where several processes run them."""
    if (processes := getattr(config, "workerinput", {}).get("workercount", 1)) > 1:
        items[:] = longest_first(items, processes)


def pytest_terminal_summary(terminalreporter):
    """Print which programs the skipped tests miss, and the command that installs them."""
    skipped = terminalreporter.stats.get("skipped", [])
    if line := programs.summary([report.longrepr[2] for report in skipped]):
        terminalreporter.write_line(line, yellow=True)


@pytest.fixture(autouse=True)
def new_burst_limiter(monkeypatch):
    """Give each test the whole number of warnings in a second."""
    monkeypatch.setattr(logs, "_limiter", logs.BurstLimiter())

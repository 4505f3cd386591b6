"""What holds for all tests."""

import signal

from hypothesis import settings

from tests import programs

# A job in the background ignores Ctrl-C, and so would every process that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine may take a second over anything.
settings.register_profile("busy", deadline=None)
settings.load_profile("busy")


def pytest_addoption(parser):
    """Add the option that sets the length of the simulation."""
    parser.addoption("--fleets", type=int, default=2400, help="number of simulated fleets, default 2400")


def pytest_terminal_summary(terminalreporter):
    """Print which programs the skipped tests miss, and the command that installs them."""
    skipped = terminalreporter.stats.get("skipped", [])
    if line := programs.summary([report.longrepr[2] for report in skipped]):
        terminalreporter.write_line(line, yellow=True)

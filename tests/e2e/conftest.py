"""Real processes: the CLIs as they are installed, on free ports, with their logs kept beside the test."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from imagegen_client import Client
from imagegen_worker.devices.mkl import VARIABLE
from tests.e2e.conformance import Tool
from tools.fleet import Fleet

SIMULATED = ("--backend", "simulated", "--simulated-batch-seconds", "0.05", "--simulated-image-seconds", "0.02")

BROKER = ("--heartbeat-interval", "0.2", "--liveness", "10")
"""Quick to hear, and patient enough with processes that a busy machine lets wait."""
DEFAULT_ARITHMETIC = {VARIABLE: ""}
"""Empty: the processes under test start without MKL's reproducible mode, which the tests' own process has."""
PATIENT = ("--heartbeat-interval", "0.2", "--liveness", "100")
"""For tests in which nobody may be taken for dead."""


@pytest.fixture
def fleet(tmp_path):
    """An empty fleet; whatever is started in it is stopped at the end."""
    with Fleet(log_folder=tmp_path / "logs", environment=DEFAULT_ARITHMETIC) as fleet:
        yield fleet


@pytest.fixture
def client(fleet):
    """A client of the fleet's broker, which it starts."""
    fleet.start_broker(*BROKER)
    with Client(fleet.frontend) as client:
        yield client


@pytest.fixture
def patient_client(fleet):
    """A client of a broker that takes nobody for dead."""
    fleet.start_broker(*PATIENT)
    with Client(fleet.frontend) as client:
        yield client


def start_simulated(fleet, client, *names, options=SIMULATED):
    """Start simulated workers and wait until they are registered."""
    for index, name in enumerate(names):
        fleet.start_worker(name, "--gpu", str(index), *options)
    fleet.wait_for_workers(client, len(names))


def program(name):
    """Where one of the project's commands is installed."""
    return str(Path(sys.executable).with_name(name))


def command(*arguments, check=True, **options):
    """Run one of the project's commands to its end."""
    words = [program(arguments[0]), *arguments[1:]]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=check, **options)


def bench(fleet, *arguments):
    """Run `imagegen bench --json` and return what it says."""
    return json.loads(command("imagegen", "bench", "--json", "--broker", fleet.frontend, *arguments).stdout)


@pytest.fixture
def start_tool():
    """Start the tool; it is ended with the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            tool = Tool(*arguments)
            stack.callback(tool.stop)
            return tool

        yield start

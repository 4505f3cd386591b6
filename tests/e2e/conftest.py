"""Fixtures with real processes: the installed commands on free ports, with logs in the test's folder."""

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
"""Short heartbeats, and a liveness time that tolerates delays on a busy machine."""
DEFAULT_ARITHMETIC = {VARIABLE: ""}
"""The processes under test start without MKL's reproducible mode, in which the tests' own process runs."""
PATIENT = ("--heartbeat-interval", "0.2", "--liveness", "100")
"""For tests in which no peer may count as dead."""


@pytest.fixture
def fleet(tmp_path):
    """An empty fleet; its processes are stopped at the end of the test."""
    with Fleet(log_folder=tmp_path / "logs", environment=DEFAULT_ARITHMETIC) as fleet:
        yield fleet


@pytest.fixture
def client(fleet):
    """Start a broker; return a client of it."""
    fleet.start_broker(*BROKER)
    with Client(fleet.frontend) as client:
        yield client


@pytest.fixture
def patient_client(fleet):
    """Start a broker with a long liveness time; return a client of it."""
    fleet.start_broker(*PATIENT)
    with Client(fleet.frontend) as client:
        yield client


def start_simulated(fleet, client, *names, options=SIMULATED):
    """Start simulated workers and wait until they are registered."""
    for index, name in enumerate(names):
        fleet.start_worker(name, "--gpu", str(index), *options)
    fleet.wait_for_workers(client, len(names))


def program(name):
    """Return the path of one of the project's commands."""
    return str(Path(sys.executable).with_name(name))


def command(*arguments, check=True, **options):
    """Run one of the project's commands until it exits."""
    words = [program(arguments[0]), *arguments[1:]]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=check, **options)


def bench(fleet, *arguments):
    """Run `imagegen bench --json` and return its report."""
    return json.loads(command("imagegen", "bench", "--json", "--broker", fleet.frontend, *arguments).stdout)


@pytest.fixture
def start_tool():
    """Return a function that starts the conformance tool; it is stopped at the end of the test."""
    with contextlib.ExitStack() as stack:

        def start(*arguments):
            tool = Tool(*arguments)
            stack.callback(tool.stop)
            return tool

        yield start

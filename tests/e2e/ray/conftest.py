"""Fixtures with a Ray cluster. Ray is large, so it has a Python environment of its own (`make test-ray`)."""

import os
import signal
import subprocess

import pytest

from tests.programs import RAY_PYTHON as PYTHON
from tests.programs import ROOT, require


class Nodes:
    """A Ray cluster of several nodes on this machine; it starts with a head node without GPUs."""

    def __init__(self, log):
        self._process = subprocess.Popen(
            [PYTHON, ROOT / "tests/e2e/ray/cluster.py"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=clean(),
        )
        self.address = self._process.stdout.readline().strip()
        assert self.address, f"no cluster; {log.name} says why"

    def send(self, *words):
        """Add, kill or drain a node."""
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self):
        """End every process of the cluster."""
        self._process.stdin.close()
        try:
            self._process.wait(60)
        finally:
            self._process.kill()
            self._process.stdout.close()


@pytest.fixture
def nodes(tmp_path):
    require("Ray")
    with (tmp_path / "cluster.log").open("w") as log:
        nodes = Nodes(log)
        yield nodes
        nodes.close()


@pytest.fixture
def start_manager(nodes, tmp_path):
    """Return a function that starts the manager of workers on the cluster; it is drained at the end."""
    processes = []

    def start(*arguments):
        log = (tmp_path / "manager.log").open("a")
        command = [PYTHON, "-m", "deploy.ray.fleet", "--address", nodes.address, *arguments]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=clean()))
        log.close()
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            finally:
                process.kill()


def clean():
    """Return environment variables with which Ray's Python finds only its own packages."""
    own = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return own | {"RAY_USAGE_STATS_ENABLED": "0"}

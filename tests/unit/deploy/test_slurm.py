"""The array script: its shell, and its worker part in a stand-in of Slurm's environment."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.deploy.commands import DEPLOY, default

SCRIPT = DEPLOY / "slurm/workers.sbatch"
SLURM = {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_ID": "74", "SLURMD_NODENAME": "gpu-12"}
BIN = Path(sys.executable).parent


def directives():
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SCRIPT.read_text(), re.M))


@pytest.mark.parametrize("words", [("bash", "-n"), (str(BIN / "shellcheck"),)], ids=["bash", "shellcheck"])
def test_the_shell_is_right(words):
    done = subprocess.run([*words, SCRIPT], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_task_is_one_worker_on_one_gpu():
    told = directives()
    assert (told["nodes"], told["ntasks"], told["gpus"]) == ("1", "1", "1")
    assert "array" in told


def test_it_drains_before_the_time_is_up():
    whom, number, seconds = re.fullmatch(r"(B):(\w+)@(\d+)", directives()["signal"]).groups()
    assert (whom, signal.Signals[f"SIG{number}"]) == ("B", signal.SIGTERM)
    assert int(seconds) > default("worker", "drain_timeout")


def run(*options, **environment):
    clean = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", ""), "IMAGEGEN_BIN": str(BIN)}
    words = ["bash", SCRIPT, "--backend", "simulated", *options]
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=clean | environment)


def test_without_a_broker_it_says_what_is_missing():
    done = run(**SLURM)
    assert done.returncode == 2
    assert "IMAGEGEN_BROKER must be set" in done.stderr


def test_outside_of_slurm_it_says_so():
    done = run(IMAGEGEN_BROKER="tcp://127.0.0.1:1")
    assert done.returncode != 0
    assert "this script is for sbatch" in done.stderr


def test_words_are_options_of_the_worker():
    done = run("--check-config", "--max-batch-size", "3", IMAGEGEN_BROKER="tcp://login-1:5556", **SLURM)
    assert done.returncode == 0
    assert re.search(r'^name = "gpu-12-71-3" ', done.stdout, re.MULTILINE)
    assert re.search(r"^max_batch_size = 3 ", done.stdout, re.MULTILINE)
    assert "tcp://login-1:5556" in done.stdout

"""The examples of docs/gateway.md, run unchanged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.programs import needs

PAGE = Path(__file__).parents[3] / "docs/gateway.md"
HERE = "http://127.0.0.1:8000"

pytestmark = needs("curl", "jq")


def examples(language, *words):
    """Return the code blocks of a language that contain all the words."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [block for block in blocks if all(word in block for word in words)]


@pytest.fixture
def run_example(gateway, tmp_path, monkeypatch):
    """A function that runs an example in an empty folder against the test's gateway."""
    work = tmp_path / "work"
    work.mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"

    def run(example, *command, **environment):
        words = [*command, "-c" if command[0] != "bash" else "-ec", example.replace(HERE, gateway.url)]
        return subprocess.run(
            words,
            cwd=work,
            env={**os.environ, "PATH": path, **environment},
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        ).stdout

    run.folder = work
    return run


def test_an_image_with_curl(run_example):
    [example] = examples("sh", "/v1/images/generations")
    run_example(example, "bash")
    with Image.open(run_example.folder / "circle.png") as image:
        assert image.size == (64, 64)


def test_openais_client(run_example):
    [example] = examples("python", "OpenAI(")
    output = run_example(example, sys.executable, "-W", "error")
    assert output.splitlines()[-1] == "image_generation.completed"
    assert {path.name for path in run_example.folder.iterdir()} == {"star-7.png", "star-8.png"}


def test_a_job_with_curl(run_example):
    [example] = examples("sh", "/v1/jobs", "Idempotency-Key")
    assert "event: done" in run_example(example, "bash")
    with Image.open(run_example.folder / "ring.png") as image:
        assert image.size == (64, 64)


def test_the_parameters_of_a_model_with_curl(run_example):
    [example] = examples("sh", "parameters")
    assert '"default": 20' in run_example(example, "bash")


def test_key_commands(run_example, gateway):
    [example] = examples("sh", "keys add alice --requests")
    words = "\n".join(line for line in example.splitlines() if " keys " in line)
    output = run_example(words, "bash", IMAGEGEN_GATEWAY_STATE_FOLDER=str(gateway.folder), COLUMNS="300")
    assert output.startswith("key             imagegen_")
    assert "requests_per_minute=60.0" in output
    assert output.endswith("revoked alice\n")


def test_a_key_with_curl(run_example, gateway):
    [example] = examples("sh", "Authorization: Bearer")
    assert '"object":"list"' in run_example(example, "bash", KEY=gateway.add_key("alice"))

"""The examples of docs/gateway.md, typed as they stand there."""

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
    """The blocks of a language with all the words in them."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    return [block for block in blocks if all(word in block for word in words)]


@pytest.fixture
def type_in(gateway, tmp_path, monkeypatch):
    """Run an example in an empty folder, against the test's gateway."""
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


def test_a_picture_with_curl(type_in):
    [example] = examples("sh", "/v1/images/generations")
    type_in(example, "bash")
    with Image.open(type_in.folder / "circle.png") as image:
        assert image.size == (64, 64)


def test_openais_client(type_in):
    [example] = examples("python", "OpenAI(")
    said = type_in(example, sys.executable, "-W", "error")
    assert said.splitlines()[-1] == "image_generation.completed"
    assert {path.name for path in type_in.folder.iterdir()} == {"star-7.png", "star-8.png"}


def test_a_job_with_curl(type_in):
    [example] = examples("sh", "/v1/jobs", "Idempotency-Key")
    assert "event: done" in type_in(example, "bash")
    with Image.open(type_in.folder / "ring.png") as image:
        assert image.size == (64, 64)


def test_what_a_model_takes_with_curl(type_in):
    [example] = examples("sh", "parameters")
    assert '"default": 20' in type_in(example, "bash")


def test_keys(type_in, gateway):
    [example] = examples("sh", "keys add alice --requests")
    words = "\n".join(line for line in example.splitlines() if " keys " in line)
    said = type_in(words, "bash", IMAGEGEN_GATEWAY_STATE_FOLDER=str(gateway.folder), COLUMNS="300")
    assert said.startswith("key             imagegen_")
    assert "requests_per_minute=60.0" in said
    assert said.endswith("revoked alice\n")


def test_a_key_with_curl(type_in, gateway):
    [example] = examples("sh", "Authorization: Bearer")
    assert '"object":"list"' in type_in(example, "bash", KEY=gateway.add_key("alice"))

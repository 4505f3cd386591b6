"""`make demo`, as its module: the pictures are what was asked for, and nothing is left behind, Ctrl-C or not."""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event

import psutil
import pytest
from PIL import Image

from tools.demo import PROMPTS
from tools.shapes import drawing, grade

ROOT = Path(__file__).parents[2]
MARK = "IMAGEGEN_TEST_MARK"


@pytest.fixture
def demo(tmp_path):
    """Start the demo in an empty folder; whatever it started carries the mark in its environment."""
    mark = secrets.token_hex(8)
    environment = {**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.demo"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.mark = mark
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def marked(mark):
    """The living processes that carry the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it ended while it was looked at, or is not ours to look at
    return found


def wait_for(holds, process):
    for _ in range(2000):
        if holds():
            return
        assert process.poll() is None, f"the demo ended too early: {process.stdout.read()}"
        Event().wait(0.05)
    raise AssertionError("waited in vain")


def test_the_demo_draws_what_it_was_asked_for(demo, tmp_path):
    said, _ = demo.communicate(timeout=150)
    assert demo.returncode == 0, said
    assert "gpu0" in said
    assert "gpu1" in said
    assert "imagegen up, then http://127.0.0.1:8000" in " ".join(said.split())
    out = tmp_path / "out" / "demo"
    pictures = sorted(out.glob("[0-9]*.png"))
    assert len(pictures) == len(PROMPTS)
    right = 0
    for prompt, path in zip(PROMPTS, pictures, strict=True):
        seen = grade.measure(Image.open(path))
        right += drawing.plain_caption(drawing.Spec(seen.shape, seen.foreground, seen.background)) == prompt
    assert right >= 0.75 * len(PROMPTS)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 3 * drawing.SIZE
    assert not marked(demo.mark)


@pytest.mark.parametrize("moment", ["at once", "broker", "workers", "drawing"])
def test_an_interrupt_leaves_no_process_behind(demo, tmp_path, moment):
    out = tmp_path / "out" / "demo"
    moments = {
        "at once": lambda: out.is_dir(),
        "broker": lambda: (out / "logs" / "broker.log").is_file(),
        "workers": lambda: (out / "logs" / "gpu1.log").is_file(),
        "drawing": lambda: any(out.glob("00-*.png")),
    }
    wait_for(moments[moment], demo)
    demo.send_signal(signal.SIGINT)
    said, _ = demo.communicate(timeout=60)
    # The last picture may have been quicker than the signal.
    assert demo.returncode in ((0, 130) if moment == "drawing" else (130,)), said
    assert "Traceback" not in said
    assert not marked(demo.mark)

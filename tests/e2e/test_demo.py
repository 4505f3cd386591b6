"""The module behind `make demo`: correct images, and no process left after it ends or is interrupted."""

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
    """Start the demo in an empty folder; all of its processes have a mark in their environment."""
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
    """Return the live processes that have the mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # the process has ended, or belongs to another user
    return found


def wait_for(condition, process):
    for _ in range(2000):
        if condition():
            return
        assert process.poll() is None, f"the demo ended too early: {process.stdout.read()}"
        Event().wait(0.05)
    raise AssertionError("the condition was not met in time")


def test_the_demo_generates_the_images_of_its_prompts(demo, tmp_path):
    output, _ = demo.communicate(timeout=150)
    assert demo.returncode == 0, output
    assert "gpu0" in output
    assert "gpu1" in output
    assert "imagegen up, then http://127.0.0.1:8000" in " ".join(output.split())
    out = tmp_path / "out" / "demo"
    images = sorted(out.glob("[0-9]*.png"))
    assert len(images) == len(PROMPTS)
    correct = 0
    for prompt, path in zip(PROMPTS, images, strict=True):
        measured = grade.measure(Image.open(path))
        correct += (
            drawing.plain_caption(drawing.Spec(measured.shape, measured.foreground, measured.background)) == prompt
        )
    assert correct >= 0.75 * len(PROMPTS)
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 3 * drawing.SIZE
    assert not marked(demo.mark)


@pytest.mark.parametrize("moment", ["at once", "broker", "workers", "drawing"])
def test_an_interrupt_leaves_no_process(demo, tmp_path, moment):
    out = tmp_path / "out" / "demo"
    moments = {
        "at once": lambda: out.is_dir(),
        "broker": lambda: (out / "logs" / "broker.log").is_file(),
        "workers": lambda: (out / "logs" / "gpu1.log").is_file(),
        "drawing": lambda: any(out.glob("00-*.png")),
    }
    wait_for(moments[moment], demo)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    # The demo may have ended before the signal arrived.
    assert demo.returncode in ((0, 130) if moment == "drawing" else (130,)), output
    assert "Traceback" not in output
    assert not marked(demo.mark)

"""Output on a terminal: `imagegen top`, and the progress bars of `imagegen generate`."""

import pytest

from tests.e2e.conftest import SIMULATED, start_simulated
from tests.e2e.terminal import Terminal

SLOW = ("--backend", "simulated", "--simulated-batch-seconds", "600")


@pytest.fixture
def top(fleet, client):
    start_simulated(fleet, client, "one", "two")
    with Terminal("imagegen", "top", "--interval", "0.2", "--broker", fleet.frontend) as terminal:
        terminal.wait_for("imagegen top", "one", "two", "● ready", "q exits", "2 GPUs")
        yield terminal


def test_top_shows_changes_of_the_fleet(fleet, client, top):
    assert top.lines[1].startswith(f"● {fleet.frontend}  queued 0")
    assert all(len(line) <= 100 for line in top.lines)
    for _ in client.map(["x"] * 20):
        pass
    top.wait_for("▇")
    fleet.kill("two")
    top.wait_for("● gone", "1 GPU ")
    fleet.kill("broker")
    top.wait_for(f"○ {fleet.frontend}  unreachable for", "● stale")
    fleet.start_broker("--heartbeat-interval", "0.2")
    top.wait_for(f"● {fleet.frontend}", "● ready")
    top.press("q")
    assert top.wait_for_end() == 0
    assert top.is_restored()


def test_ctrl_c_exits_top(top):
    top.press("\x03")
    assert top.wait_for_end() == 0
    assert top.is_restored()


def test_many_prompts_have_bars_and_ctrl_c_cancels_them(fleet, client, tmp_path):
    start_simulated(fleet, client, "slow", options=SLOW)
    prompts = [f"prompt {number}" for number in range(40)]
    with Terminal(
        "imagegen", "generate", *prompts, "--out", str(tmp_path), "--broker", fleet.frontend
    ) as terminal:
        terminal.wait_for("all prompts", "0/40", "  prompt 0", "waiting")
        terminal.press("\x03")
        assert terminal.wait_for_end() == 130
        assert "error: interrupted" in "\n".join(terminal.lines)
        assert "all prompts" not in "\n".join(terminal.lines), "the bars are removed"
    assert list(tmp_path.glob("*.png")) == []
    fleet.wait_until(lambda: client.stats()["requests"]["queued"] == 0, "an empty queue")


def test_images_are_shown_in_the_terminal(fleet, client, tmp_path):
    start_simulated(fleet, client, "quick", options=SIMULATED)
    words = ("generate", "a", "b", "--show", "--size", "64x32", "--out", str(tmp_path), "--broker", fleet.frontend)
    with Terminal("imagegen", *words, columns=120, rows=60) as terminal:
        assert terminal.wait_for_end() == 0
        colours = [{cell.bg for cell in line.values()} for line in terminal.screen.buffer.values()]
        assert sum(bool(line - {"default"}) for line in colours) == 40, "two images of 20 lines each"
        assert "Traceback" not in "\n".join(terminal.lines)
        assert terminal.is_restored()
    assert len(list(tmp_path.glob("*.png"))) == 2


def test_lines_are_printed_above_the_bars(fleet, client, tmp_path):
    start_simulated(fleet, client, "quick", options=SIMULATED)
    words = ("generate", "a", "b", "c", "--seed", "5", "--out", str(tmp_path), "--broker", fleet.frontend)
    with Terminal("imagegen", *words, columns=200) as terminal:
        assert terminal.wait_for_end() == 0
        text = "\n".join(terminal.lines)
    assert all(f"{tmp_path}/imagegen-{seed}.png" in text for seed in (5, 6, 7))
    assert text.count("worker=quick") == 3

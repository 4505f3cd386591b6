"""A seed determines the history exactly, also in another process with a different hash seed."""

import os
import subprocess
import sys

import pytest

from tests.simulation.fleet import run, tell
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import RARE, THEMES, draw
from tests.simulation.witness import Violation


def story(seed, theme, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--theme", theme]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


def seed_of(theme):
    return next(seed for seed in range(1000) if draw(seed).theme == theme or THEMES[theme][0] == RARE)


@pytest.mark.parametrize("theme", THEMES)
def test_a_seed_has_the_same_history_in_another_process(theme):
    seed = seed_of(theme)
    first, second = story(seed, theme, 1), story(seed, theme, 2)
    assert first == second
    assert first.count(b"\n") > 200
    assert b"every invariant held" in first


def test_recording_does_not_change_the_run():
    seed = seed_of("everything")
    quiet, recorded = run(draw(seed)), run(draw(seed), recording=True)
    assert quiet.now == recorded.now
    assert quiet.witness.outcomes == recorded.witness.outcomes
    assert quiet.witness.messages == recorded.witness.messages


def test_a_failing_seed_prints_the_history_of_the_affected_request():
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == "duplicates are delivered twice")
    with mutation.applied():
        for seed in range(100):
            try:
                run(draw(seed))
            except Violation as violation:
                text, key = tell(seed), violation.key.hex()
                break
    lines = text.splitlines()
    assert lines[0].startswith("one_answer: ")
    assert any(line.startswith("plan: seed=") for line in lines)
    assert any("asks for 'p'" in line and key in line for line in lines)
    assert any("Submit" in line for line in lines)
    assert not any("asks for" in line and key not in line for line in lines)
    assert lines[-1] == f"again: python -m tests.simulation --seed {seed}"

"""A seed determines the history exactly, also in another process with a different hash seed."""

import os
import subprocess
import sys

import pytest

from tests.simulation.fleet import replay, run
from tests.simulation.fleet_record import Violation
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import ONLY_BY_NAME, THEMES, make_plan


def history(seed, theme, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(seed), "--theme", theme]
    return subprocess.run(command, env=environment, capture_output=True, check=True).stdout


def seed_of(theme):
    return next(seed for seed in range(1000) if make_plan(seed).theme == theme or THEMES[theme][0] == ONLY_BY_NAME)


@pytest.mark.parametrize("theme", THEMES)
def test_a_seed_has_the_same_history_in_another_process(theme):
    seed = seed_of(theme)
    first, second = history(seed, theme, 1), history(seed, theme, 2)
    assert first == second
    assert first.count(b"\n") > 200
    assert b"every invariant held" in first


def test_recording_does_not_change_the_run():
    seed = seed_of("all_faults")
    quiet, recorded = run(make_plan(seed)), run(make_plan(seed), recording=True)
    assert quiet.now == recorded.now
    assert quiet.record.outcomes == recorded.record.outcomes
    assert quiet.record.messages == recorded.record.messages


def test_a_failing_seed_prints_the_history_of_the_affected_request():
    mutation = next(mutation for mutation in MUTATIONS if mutation.name == "duplicates are delivered twice")
    with mutation.applied():
        for seed in range(100):
            try:
                run(make_plan(seed))
            except Violation as violation:
                text, key = replay(seed), violation.key.hex()
                break
    lines = text.splitlines()
    assert lines[0].startswith("exactly_one_answer: ")
    assert any(line.startswith("plan: seed=") for line in lines)
    assert any("submits 'p'" in line and key in line for line in lines)
    assert any("Submit" in line for line in lines)
    assert not any("submits '" in line and key not in line for line in lines)
    assert lines[-1] == f"again: python -m tests.simulation --seed {seed}"

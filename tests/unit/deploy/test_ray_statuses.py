"""The Ray actor knows no package of ours: what it repeats must be the same."""

import ast
from pathlib import Path

from imagegen_worker.supervisor.core import PERMANENT

SOURCE = Path(__file__).parents[3] / "deploy/ray/daemon.py"


def constant(name):
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{SOURCE} has no {name}")


def test_the_same_statuses_end_a_worker_for_good():
    assert {constant("DRAINED"), *constant("PERMANENT_FAILURES")} == set(PERMANENT)

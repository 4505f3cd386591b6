"""The Ray actor imports no package of imagegen; the constants that it repeats must match."""

import ast
from pathlib import Path

from imagegen_worker.supervisor.core import PERMANENT

SOURCE = Path(__file__).parents[3] / "deploy/ray/daemon.py"


def constant(name):
    for node in ast.parse(SOURCE.read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:
            return ast.literal_eval(node.value)
    raise AssertionError(f"{SOURCE} has no {name}")


def test_the_permanent_exit_statuses_match_those_of_the_supervisor():
    assert {constant("DRAINED"), *constant("PERMANENT_FAILURES")} == set(PERMANENT)

"""Each target on its regressions, on its seeds and on a fixed number of inputs: about a second of each."""

import pytest

from tests.fuzz.hypothesis_runner import check
from tests.fuzz.target import CORPUS
from tests.fuzz.targets import TARGETS

EXAMPLES, SCRIPT_EXAMPLES = 400, 100
"""Inputs of each target. All targets together take less than a minute on one core."""


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_is_mishandled(name):
    target = TARGETS[name]
    check(target, SCRIPT_EXAMPLES if target.is_script else EXAMPLES)


def test_every_regression_belongs_to_a_target():
    assert {path.name for path in CORPUS.iterdir()} <= set(TARGETS)

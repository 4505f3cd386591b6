"""Thousands of fleets, hundreds of thousands of requests: every invariant holds in every one of them.

A failing seed prints the story of the request concerned; `python -m tests.simulation --seed N` plays it again.
"""

import pytest

from tests.simulation.faults import FAULTS
from tests.simulation.fleet import Counts, check
from tests.simulation.plan import THEMES

FLEETS, CHUNK = 2400, 60
COUNTS = Counts()


@pytest.mark.parametrize("first", range(0, FLEETS, CHUNK))
def test_every_invariant_holds_in_the_fleets_from_seed(first):
    for seed in range(first, first + CHUNK):
        COUNTS.add(check(seed))


def test_enough_was_tried():
    if COUNTS.fleets < FLEETS:
        pytest.skip("only some of the fleets were run")
    print(COUNTS)
    assert COUNTS.requests >= 200_000
    assert COUNTS.themes.keys() == THEMES.keys()
    assert COUNTS.faults.keys() == FAULTS.keys()
    assert min(COUNTS.faults.values()) >= 200
    assert COUNTS.outcomes["result"] > 0.7 * COUNTS.requests

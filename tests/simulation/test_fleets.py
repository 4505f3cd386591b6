"""All invariants hold in thousands of simulated fleets with hundreds of thousands of requests.

A failing seed prints the history of the affected request; `python -m tests.simulation --seed N` repeats it.
`pytest --fleets N` sets the number of fleets.
"""

from tests.simulation.faults import FAULTS
from tests.simulation.fleet import Counts, check
from tests.simulation.plan import THEMES

CHUNK = 240
"""Number of fleets in one test."""


def pytest_generate_tests(metafunc):
    fleets = metafunc.config.getoption("fleets")
    metafunc.parametrize("first", range(0, fleets, CHUNK))


def test_every_invariant_holds_in_the_fleets_from_seed(first):
    counts = Counts()
    for seed in range(first, first + CHUNK):
        counts.add(check(seed))
    print(counts)
    assert counts.requests >= 10_000
    assert counts.themes.keys() == THEMES.keys()
    assert counts.faults.keys() == FAULTS.keys()
    assert min(counts.faults.values()) >= 3
    assert counts.outcomes["result"] > 0.7 * counts.requests

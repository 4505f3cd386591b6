"""All invariants hold in thousands of simulated fleets with hundreds of thousands of requests.

A failing seed prints the history of the affected request; `python -m tests.simulation --seed N` repeats it.
`pytest --fleets N` sets the number of fleets.
"""

from tests.simulation.faults import FAULTS
from tests.simulation.fleet import Counts, check
from tests.simulation.plan import ONLY_BY_NAME, THEMES

CHUNK = 240
"""Number of fleets in one test."""
SHARED_LINKS = 40


def pytest_generate_tests(metafunc):
    if "first" in metafunc.fixturenames:
        fleets = metafunc.config.getoption("fleets")
        metafunc.parametrize("first", range(0, fleets, CHUNK))


def test_every_invariant_holds_in_the_fleets_from_seed(first):
    counts = Counts()
    for seed in range(first, first + CHUNK):
        counts.add(check(seed))
    print(counts)
    assert counts.requests >= 10_000
    assert counts.themes.keys() == {name for name, (weight, _) in THEMES.items() if weight > ONLY_BY_NAME}
    assert counts.faults.keys() == FAULTS.keys()
    assert min(counts.faults.values()) >= 3
    assert counts.outcomes["result"] > 0.7 * counts.requests


def test_every_invariant_holds_where_many_clients_share_the_slow_link_of_a_worker():
    for seed in range(SHARED_LINKS):
        world = check(seed, "shared_link")
        assert world.record.outcomes.keys() == {"result"}, f"seed {seed}"

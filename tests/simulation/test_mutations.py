"""Show that the simulation can fail: each deliberate fault in a core is caught by an invariant that it breaks."""

import inspect

import pytest

from tests.simulation import invariants
from tests.simulation.fleet import run
from tests.simulation.fleet_record import Violation
from tests.simulation.mutations import MUTATIONS
from tests.simulation.plan import make_plan

MAX_FLEETS = 1000
"""Fleets; far fewer than CI runs."""


def test_there_are_enough_of_them_and_they_name_invariants():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 12
    known = {name for name, value in vars(invariants).items() if inspect.isfunction(value)} | {"within_capacity"}
    assert {name for mutation in MUTATIONS for name in mutation.caught_by} <= known


def violation_of(plan):
    try:
        run(plan)
    except Violation as violation:
        # A core that raises ends the fleet before an invariant can fail.
        return None if violation.invariant == invariants.CORES_DO_NOT_RAISE else violation
    return None


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_fault_is_caught(mutation):
    with mutation.applied():
        for seed in range(mutation.first_seed, mutation.first_seed + MAX_FLEETS):
            if (violation := violation_of(make_plan(seed, mutation.theme))) is not None:
                break
    assert violation is not None, f"not caught within {MAX_FLEETS} fleets"
    assert violation.invariant in mutation.caught_by, f"seed {seed}: {violation}"
    assert violation_of(make_plan(seed, mutation.theme)) is None, "the fleet fails without the fault too"
    print(f"caught by {violation.invariant} at seed {seed}")


def test_a_mutation_leaves_the_core_as_it_was():
    for mutation in MUTATIONS:
        with mutation.applied():
            pass
    run(make_plan(3))

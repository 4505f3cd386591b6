"""Run simulated fleets: one seed with its history, a number of fleets, or fleets for some minutes."""

import argparse
import sys
import time

from tests.simulation.fleet import Counts, check, run
from tests.simulation.fleet_record import Violation
from tests.simulation.plan import THEMES, make_plan


def main() -> int:
    """Run the command; return its exit status, 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="print the history of one seed, or the first seed of many")
    parser.add_argument("--fleets", type=int, help="run so many fleets (default 100)")
    parser.add_argument("--minutes", type=float, help="run for so long")
    parser.add_argument("--theme", choices=sorted(THEMES), help="run fleets of this theme only")
    options = parser.parse_args()
    if options.seed is not None and options.fleets is None and options.minutes is None:
        return one(options.seed, options.theme)
    return many(options.seed or 0, options.fleets, options.minutes, options.theme)


def one(seed: int, theme: str | None) -> int:
    """Run the fleet of a seed; print its plan, history and result."""
    plan = make_plan(seed, theme)
    print(plan)
    failure: Violation | None = None
    try:
        world = run(plan, recording=True)
    except Violation as violation:
        world, failure = violation.world, violation
    if world is not None:
        print("\n".join(world.history.lines()))
        print(f"digest: {world.history.digest()}")
    print(f"seed {seed}: {failure or 'every invariant held'}")
    return int(failure is not None)


def many(first: int, fleets: int | None, minutes: float | None, theme: str | None) -> int:
    """Run fleets up to a number or a time; stop at the first violation."""
    counts = Counts()
    begun = time.monotonic()
    seed = first
    while (counts.fleets < (fleets or 100)) if minutes is None else (time.monotonic() - begun < 60 * minutes):
        try:
            counts.add(check(seed, theme))
        except Violation as violation:
            print(violation)
            return 1
        seed += 1
    print(counts)
    print(f"seeds {first} to {seed - 1}, {time.monotonic() - begun:.1f} s: every invariant held")
    return 0


if __name__ == "__main__":
    sys.exit(main())

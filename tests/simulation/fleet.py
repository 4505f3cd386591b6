"""Running of one simulated fleet and, after a violation, its history."""

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.fleet_record import Violation
from tests.simulation.invariants import CORES_DO_NOT_RAISE
from tests.simulation.plan import Plan, make_plan
from tests.simulation.world import World


@dataclass(slots=True)
class Counts:
    """Counts of faults, requests and outcomes over several fleets."""

    fleets: int = 0
    requests: int = 0
    messages: int = 0
    generated_twice: int = 0
    themes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, world: World) -> None:
        """Count a fleet."""
        self.fleets += 1
        self.requests += len(world.record.submissions)
        self.messages += world.record.messages
        self.generated_twice += world.record.generated_twice
        self.themes[world.plan.theme] += 1
        self.faults += world.record.faults
        self.outcomes += world.record.outcomes

    def __str__(self) -> str:
        def words(counter: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"

        return "\n".join(
            [
                f"fleets: {self.fleets} ({words(self.themes)})",
                f"requests: {self.requests}, messages: {self.messages}",
                f"faults: {sum(self.faults.values())} ({words(self.faults)})",
                f"answers: {words(self.outcomes)}",
                f"generated twice, each because of a fault: {self.generated_twice}",
            ]
        )


def run(plan: Plan, *, recording: bool = False) -> World:
    """Run a fleet. Raises `Violation`."""
    world: World | None = None
    try:
        world = World(plan, recording=recording)
        world.run()
    except Violation as violation:
        violation.world = world
        raise
    except Exception as error:
        violation = Violation(CORES_DO_NOT_RAISE, f"{type(error).__name__}: {error}")
        violation.world = world
        raise violation from error
    return world


def check(seed: int, theme: str | None = None) -> World:
    """Run the fleet of a seed. Raises `Violation` with the history of the affected request."""
    try:
        return run(make_plan(seed, theme))
    except Violation as violation:
        violation.args = (replay(seed, theme),)
        raise


def replay(seed: int, theme: str | None = None) -> str:
    """Run a failing fleet again, and return the history of the affected request."""
    plan = make_plan(seed, theme)
    try:
        run(plan, recording=True)
    except Violation as violation:
        world = violation.world
        lines = world.history.of(violation.key) if world is not None else []
        again = f"python -m tests.simulation --seed {seed}" + (f" --theme {theme}" if theme else "")
        return "\n".join([str(violation), str(plan), *lines, f"seed {seed}: {violation}", f"again: {again}"])
    return f"seed {seed} did not fail again: the simulation is not deterministic"

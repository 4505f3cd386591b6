"""Running of one simulated fleet and, after a violation, its history."""

from collections import Counter
from dataclasses import dataclass, field

from tests.simulation.invariants import CORES_DO_NOT_RAISE
from tests.simulation.plan import Plan, draw
from tests.simulation.witness import Violation
from tests.simulation.world import World


@dataclass(slots=True)
class Counts:
    """Counts of faults, requests and outcomes over several fleets."""

    fleets: int = 0
    requests: int = 0
    messages: int = 0
    made_twice: int = 0
    themes: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, world: World) -> None:
        """Count a fleet."""
        self.fleets += 1
        self.requests += len(world.witness.asks)
        self.messages += world.witness.messages
        self.made_twice += world.witness.made_twice
        self.themes[world.plan.theme] += 1
        self.faults += world.witness.faults
        self.outcomes += world.witness.outcomes

    def __str__(self) -> str:
        def words(counter: Counter[str]) -> str:
            return ", ".join(f"{name} {count}" for name, count in sorted(counter.items())) or "none"

        return "\n".join(
            [
                f"fleets: {self.fleets} ({words(self.themes)})",
                f"requests: {self.requests}, messages: {self.messages}",
                f"faults: {sum(self.faults.values())} ({words(self.faults)})",
                f"answers: {words(self.outcomes)}",
                f"made twice, each with a fault that explains it: {self.made_twice}",
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
        return run(draw(seed, theme))
    except Violation as violation:
        violation.args = (tell(seed, theme),)
        raise


def tell(seed: int, theme: str | None = None) -> str:
    """Run a failing fleet again, and return the history of the affected request."""
    plan = draw(seed, theme)
    try:
        run(plan, recording=True)
    except Violation as violation:
        world = violation.world
        lines = world.story.of(violation.key) if world is not None else []
        again = f"python -m tests.simulation --seed {seed}" + (f" --theme {theme}" if theme else "")
        return "\n".join([str(violation), str(plan), *lines, f"seed {seed}: {violation}", f"again: {again}"])
    return f"seed {seed} did not fail again: something is not deterministic"

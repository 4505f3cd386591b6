"""The simulated load: bursts of requests, some cancelled, with short timeouts, high priority or poison."""

from typing import TYPE_CHECKING

from tests.simulation.plan import FAULTS_END

if TYPE_CHECKING:
    from tests.simulation.clients import ClientPeer
    from tests.simulation.world import World


def schedule_load(world: "World") -> None:
    """Distribute the plan's requests over clients and time, in bursts."""
    plan, rng = world.plan, world.rng
    left, poison = plan.requests, plan.poison
    while left:
        count = min(left, rng.randint(1, plan.burst))
        left -= count
        poisonous, poison = min(poison, 1), max(poison - 1, 0)
        world.at(rng.uniform(0.0, FAULTS_END), _burst, world, rng.randrange(plan.clients), count, poisonous)


def _burst(world: "World", index: int, count: int, poisonous: int) -> None:
    client = world.clients[index]
    if client.alive:
        client.when_awake(_ask, world, client, count, poisonous)


def _ask(world: "World", client: "ClientPeer", count: int, poisonous: int) -> None:
    plan, rng = world.plan, world.rng
    for number in range(count):
        if not client.alive:
            return
        prompt = "p"
        if number < poisonous:
            prompt = "poison"
        elif plan.failing_share and rng.random() < plan.failing_share:
            prompt = rng.choice(["big", "bad"])
        timeout = None
        if plan.timeout_share and rng.random() < plan.timeout_share:
            timeout = rng.choice([0.2, 1.0, 3.0, 12.0])
        submission = client.submit(
            prompt,
            rng.choice(["m", "n"]) if plan.two_models else rng.choice([None, "m"]),
            rng.choice([-1, 1, 5]) if plan.priority_share and rng.random() < plan.priority_share else 0,
            timeout,
            bool(plan.progress_share and rng.random() < plan.progress_share),
            rng.choice(plan.answer_bytes),
            rng.choice(plan.input_bytes) if plan.input_share and rng.random() < plan.input_share else 0,
        )
        if plan.cancel_share and rng.random() < plan.cancel_share:
            world.after(
                rng.choice([0.001, 0.1, 1.0, 3.0]) * rng.random(), client.when_awake, client.cancel, submission
            )

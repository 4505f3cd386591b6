"""The simulated load: bursts of requests, some cancelled, with short timeouts, high priority or poison."""

from typing import TYPE_CHECKING

from tests.simulation.plan import CALM

if TYPE_CHECKING:
    from tests.simulation.clients import ClientPeer
    from tests.simulation.world import World


def give_load(world: "World") -> None:
    """Distribute the plan's requests over clients and time, in bursts."""
    plan, dice = world.plan, world.dice
    left, poison = plan.requests, plan.poison
    while left:
        count = min(left, dice.randint(1, plan.burst))
        left -= count
        poisonous, poison = min(poison, 1), max(poison - 1, 0)
        world.at(dice.uniform(0.0, CALM), _burst, world, dice.randrange(plan.clients), count, poisonous)


def _burst(world: "World", index: int, count: int, poisonous: int) -> None:
    client = world.clients[index]
    if client.alive:
        client.when_awake(_ask, world, client, count, poisonous)


def _ask(world: "World", client: "ClientPeer", count: int, poisonous: int) -> None:
    plan, dice = world.plan, world.dice
    for number in range(count):
        if not client.alive:
            return
        prompt = "p"
        if number < poisonous:
            prompt = "poison"
        elif plan.failing_share and dice.random() < plan.failing_share:
            prompt = dice.choice(["big", "bad"])
        timeout = None
        if plan.timeout_share and dice.random() < plan.timeout_share:
            timeout = dice.choice([0.2, 1.0, 3.0, 12.0])
        ask = client.ask(
            prompt,
            dice.choice(["m", "n"]) if plan.two_models else dice.choice([None, "m"]),
            dice.choice([-1, 1, 5]) if plan.priority_share and dice.random() < plan.priority_share else 0,
            timeout,
            bool(plan.progress_share and dice.random() < plan.progress_share),
            dice.choice(plan.answer_bytes),
            dice.choice(plan.input_bytes) if plan.input_share and dice.random() < plan.input_share else 0,
        )
        if plan.cancel_share and dice.random() < plan.cancel_share:
            world.after(dice.choice([0.001, 0.1, 1.0, 3.0]) * dice.random(), client.when_awake, client.cancel, ask)

"""A client leaves a restarted broker while its SUBMIT is in transit: its images are generated once.

Both the old broker and the new one receive the SUBMIT, and both have workers with room.
"""

from tests.simulation.network import DOWN, UP
from tests.simulation.plan import Fault, Plan
from tests.simulation.world import World

SEEDS = 200
RESTART = Fault("kill_broker", 5.0, 0, 0.5)
JUST_BEFORE = 0.004
"""Seconds, less than the round-trip time to the broker."""


def fleet(seed):
    """Return a fleet whose first client leaves its broker when its message arrives there."""
    world = World(
        Plan(
            seed=seed, theme="scripted", brokers=2, workers=2, clients=2, requests=0,
            batch=1, batch_seconds=2.0, image_seconds=0.0, faults=(RESTART,),
        )
    )  # fmt: skip
    leaving, other = world.clients

    def submit(client, count=1):
        for _ in range(count):
            client.submit("p", "m", 0, None, False, 30, 0)

    def hold_back():
        """Delay the client's connection to the restarted broker."""
        leaving.link.stalled_until[:] = [1e9, 1e9]
        dead_at = (leaving.core._link.dead_at - leaving._offset) / leaving._rate
        world.at(dead_at - JUST_BEFORE, connect, leaving.link)

    def connect(link):
        submit(leaving)
        link.stalled_until[UP] = link.stalled_until[DOWN] = 0.0
        world.network.connect(link)

    world.at(1.0, submit, leaving)
    world.at(4.5, submit, other, 10)
    world.at(RESTART.at + 0.01, hold_back)
    return world


def test_the_images_are_generated_once():
    left = 0
    for seed in range(SEEDS):
        world = fleet(seed)
        world.run()
        assert world.record.generated_twice == 0, f"seed {seed}"
        left += world.clients[0].link.name == "broker 1"
    assert left > SEEDS / 2

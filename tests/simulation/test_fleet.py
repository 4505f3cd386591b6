"""Thousands of requests through fleets whose parts are killed, frozen and cut off; each seed is one story."""

import pytest

from imagegen_protocol import CancelledError, DeadlineExceededError, PoisonRequestError
from tests.simulation.world import World

CALM = 30.0
"""Seconds after which nothing bad happens any more."""
END = 150.0


# ---- invariants --------------------------------------------------------------------------------------------


def each_request_ended_once(world):
    for request_id in world.asked:
        ends = world.ends[request_id]
        assert len(ends) == 1, f"{request_id.hex()} ended {len(ends)} times: {ends}"


def each_image_is_that_of_its_seed(world):
    for request_id, seed in world.asked.items():
        for end in world.ends[request_id]:
            if isinstance(end, tuple):
                assert end == (b"image of seed %d" % seed,)


def errors_are_only_those_with_a_reason(world, allowed):
    for request_id in world.asked:
        for end in world.ends[request_id]:
            if not isinstance(end, tuple):
                assert isinstance(end, allowed), f"{request_id.hex()} ended in {end!r}"


def nobody_holds_anything(world):
    for name in world.brokers:
        core = world.peers[name].core
        assert not core.ledger.requests
    for worker in world.workers.values():
        held = worker.core.held
        assert not held.queued
        assert not held.running
        assert not held.finished


def nothing_was_made_twice(world):
    twice = {request_id.hex(): makers for request_id, makers in world.made.items() if len(makers) > 1}
    assert not twice


def check(world, *, allowed=()):
    try:
        each_request_ended_once(world)
        each_image_is_that_of_its_seed(world)
        errors_are_only_those_with_a_reason(world, (*allowed, *([PoisonRequestError] if world.kills >= 3 else [])))
        nobody_holds_anything(world)
    except AssertionError:
        print("\n".join(world.story))
        raise


def load(world, count, until=CALM):
    """Spread `count` requests over the clients and the time."""
    for _ in range(count):
        client = world.random.choice(world.clients)
        world.at(world.random.uniform(0, until), client.ask)


def some_times(world, count):
    return [world.random.uniform(1, CALM) for _ in range(count)]


# ---- stories -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_in_peace_everything_is_made_once(seed):
    world = World(seed, brokers=1 + seed % 2)
    load(world, 200)
    world.run(END)
    check(world)
    nothing_was_made_twice(world)


@pytest.mark.parametrize("seed", range(40))
def test_brokers_are_killed(seed):
    world = World(seed)
    load(world, 120)
    for when in some_times(world, 4):
        world.at(
            when, lambda: world.brokers[0] in world.peers and world.restart_broker(0, world.random.uniform(0, 4))
        )
    world.run(END)
    check(world)
    nothing_was_made_twice(world)


@pytest.mark.parametrize("seed", range(40))
def test_workers_are_killed_frozen_and_drained(seed):
    world = World(seed)
    load(world, 120)
    for when in some_times(world, 3):
        world.at(when, lambda: world.restart_worker(world.random.randrange(3), world.random.uniform(0.1, 6)))
    for when in some_times(world, 3):
        world.at(when, lambda: world.freeze_worker(world.random.randrange(3), world.random.uniform(0.5, 8)))
    for when in some_times(world, 2):
        world.at(when, lambda: world.drain_worker(world.random.randrange(3)))
    world.run(END)
    check(world)


@pytest.mark.parametrize("seed", range(40))
def test_messages_are_lost(seed):
    world = World(seed, loss=0.05)
    load(world, 100)
    world.at(CALM, lambda: setattr(world, "loss", 0.0))
    world.run(END)
    check(world)
    nothing_was_made_twice(world)


@pytest.mark.parametrize("seed", range(60))
def test_everything_at_once_with_two_brokers(seed):
    world = World(seed, brokers=2, workers=4, clients=3, loss=0.02)
    load(world, 120)
    world.at(CALM, lambda: setattr(world, "loss", 0.0))
    for when in some_times(world, 4):
        which = world.random.randrange(2)
        world.at(when, lambda which=which: world.brokers[which] in world.peers and world.restart_broker(which))
    for when in some_times(world, 4):
        world.at(when, lambda: world.restart_worker(world.random.randrange(4)))
    for when in some_times(world, 3):
        world.at(when, lambda: world.freeze_worker(world.random.randrange(4), world.random.uniform(0.5, 8)))
    for when in some_times(world, 2):
        world.at(when, lambda: world.drain_worker(world.random.randrange(4)))
    world.run(END)
    check(world)


@pytest.mark.parametrize("seed", range(20))
def test_cancels_and_deadlines_amid_kills(seed):
    world = World(seed)
    for _ in range(100):
        client = world.random.choice(world.clients)
        when = world.random.uniform(0, CALM)
        timeout = world.random.choice([None, None, 0.2, 2.0])

        cancels = world.random.random() < 0.3

        def ask(client=client, timeout=timeout, cancels=cancels):
            request_id = client.ask(timeout)
            if cancels:
                world.at(world.now + world.random.uniform(0, 2), lambda: client.cancel(request_id))

        world.at(when, ask)
    for when in some_times(world, 2):
        world.at(when, lambda: world.restart_worker(world.random.randrange(3)))
    world.at(12.0, lambda: world.restart_broker(0))
    world.run(END)
    check(world, allowed=(CancelledError, DeadlineExceededError))


def test_a_seed_tells_the_same_story_twice():
    stories = []
    for _ in range(2):
        world = World(7, brokers=2, loss=0.02)
        load(world, 50)
        world.at(9.0, lambda world=world: world.restart_worker(1))
        world.run(60.0)
        stories.append((world.story, sorted(world.ends), world.made))
    assert stories[0] == stories[1]

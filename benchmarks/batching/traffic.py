"""Requests and when they come: from a seed, before anything runs, so that every contender meets the same ones."""

import random
from dataclasses import dataclass

from imagegen_worker.core.model import Model, ResolvedRequest

STEPS = tuple(range(4, 10))
GUIDANCES = (1.0, 3.0, 5.0, 7.5)
_SUBJECTS = ("cat", "dog", "house", "tree", "boat", "lamp", "fox", "tower")


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and its time, in seconds from the start."""

    at: float
    request: ResolvedRequest


def burst(model: Model, count: int, *, alike: bool = False, seed: int = 0) -> list[Arrival]:
    """Return requests that come at once; `alike`: equal in steps and guidance, so that all can share a call."""
    rng = random.Random(seed)
    return [Arrival(0.0, _request(model, number, rng, alike)) for number in range(count)]


def poisson(model: Model, count: int, rate: float, *, seed: int = 0) -> list[Arrival]:
    """Return requests that come at random, `rate` a second on average, whatever becomes of them (open loop)."""
    rng = random.Random(seed)
    now = 0.0
    arrivals = []
    for number in range(count):
        arrivals.append(Arrival(now, _request(model, number, rng, alike=False)))
        now += rng.expovariate(rate)
    return arrivals


def _request(model: Model, number: int, rng: random.Random, alike: bool) -> ResolvedRequest:
    steps, guidance = rng.choice(STEPS), rng.choice(GUIDANCES)
    return ResolvedRequest(
        model=model.name,
        # No two alike: a cache of prompts must not win the race.
        prompt=f"a {rng.choice(_SUBJECTS)} beside a {rng.choice(_SUBJECTS)}, number {rng.randrange(10**6)}",
        negative_prompt=None,
        seeds=(number,),
        num_inference_steps=model.num_inference_steps if alike else steps,
        guidance_scale=model.guidance_scale if alike else guidance,
        width=model.width,
        height=model.height,
        scheduler=next(iter(model.schedulers), None),
    )

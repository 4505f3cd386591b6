"""Requests and when they come: from a seed, before anything runs, so that every contender meets the same ones."""

import random
from dataclasses import dataclass

from imagegen_worker.core.model import Model, ResolvedRequest

STEPS = tuple(range(4, 10))
GUIDANCES = (1.0, 3.0, 5.0, 7.5)
_SUBJECTS = ("cat", "dog", "house", "tree", "boat", "lamp", "fox", "tower")


@dataclass(frozen=True, slots=True)
class Mix:
    """What requests differ in. `sizes`: (width, height) in pixels, empty: the model's; `words` of each prompt."""

    steps: tuple[int, ...] = STEPS
    guidances: tuple[float, ...] = GUIDANCES
    sizes: tuple[tuple[int, int], ...] = ()
    words: int = 0


MIX = Mix()


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request and its time, in seconds from the start."""

    at: float
    request: ResolvedRequest


def burst(model: Model, count: int, *, alike: bool = False, seed: int = 0, mix: Mix = MIX) -> list[Arrival]:
    """Return requests that arrive at once; `alike`: of equal steps, guidance and size, which can share a call."""
    rng = random.Random(seed)
    return [Arrival(0.0, _request(model, number, rng, mix, alike=alike)) for number in range(count)]


def poisson(model: Model, count: int, rate: float, *, seed: int = 0, mix: Mix = MIX) -> list[Arrival]:
    """Return requests at random times, `rate` per second on average, served or not (open loop)."""
    rng = random.Random(seed)
    now = 0.0
    arrivals = []
    for number in range(count):
        arrivals.append(Arrival(now, _request(model, number, rng, mix, alike=False)))
        now += rng.expovariate(rate)
    return arrivals


def _request(model: Model, number: int, rng: random.Random, mix: Mix, *, alike: bool) -> ResolvedRequest:
    steps, guidance = rng.choice(mix.steps), rng.choice(mix.guidances)
    # No two alike: a cache of prompts must not win the race.
    prompt = f"a {rng.choice(_SUBJECTS)} beside a {rng.choice(_SUBJECTS)}, number {rng.randrange(10**6)}"
    prompt += "".join(f" {rng.choice(_SUBJECTS)}" for _ in range(mix.words - len(prompt.split())))
    width, height = rng.choice(mix.sizes) if mix.sizes and not alike else (model.width, model.height)
    return ResolvedRequest(
        model=model.name,
        prompt=prompt,
        negative_prompt=None,
        seeds=(number,),
        num_inference_steps=model.num_inference_steps if alike else steps,
        guidance_scale=model.guidance_scale if alike else guidance,
        width=width,
        height=height,
        scheduler=next(iter(model.schedulers), None),
    )

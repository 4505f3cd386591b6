"""What is asked for: bursts of alike requests, and requests of several sizes and steps at random times."""

import random
from typing import NamedTuple

from benchmarks.scaling.ideal import MAX_BATCH_SIZE, Asked
from benchmarks.simulated.device import Cost
from imagegen_protocol import GenerationRequest
from imagegen_worker.backends.simulated import MODEL

SIDES = (256, 256, 384)
"""Pixels; a third of the requests are large."""
STEPS = (20, 20, 30)


class Timed(NamedTuple):
    """A request and when it is to be sent, in seconds from the start."""

    at: float
    request: GenerationRequest


def burst(count: int) -> list[Timed]:
    """Return so many alike requests, all at once."""
    return [Timed(0.0, GenerationRequest(prompt=f"image {number}", seed=number)) for number in range(count)]


def work(request: GenerationRequest, *, by_work: bool) -> float:
    """Return how much a request is of the model's default one."""
    if not by_work:
        return 1.0
    pixels = (request.width or MODEL.width) * (request.height or MODEL.height) / (MODEL.width * MODEL.height)
    return pixels * (request.num_inference_steps or MODEL.num_inference_steps) / MODEL.num_inference_steps


def mean_work(*, by_work: bool) -> float:
    """Return the mean of `work` over the traffic of `poisson`."""
    mixed = [
        GenerationRequest(prompt="p", seed=0, width=s, height=s, num_inference_steps=n)
        for s in SIDES
        for n in STEPS
    ]
    return sum(work(request, by_work=by_work) for request in mixed) / len(mixed)


def capacity(costs: list[Cost]) -> float:
    """Return the default requests a second that these workers make together in full batches."""
    return sum(MAX_BATCH_SIZE / cost.seconds(MAX_BATCH_SIZE) for cost in costs)


def poisson(count: int, per_second: float, seed: int) -> list[Timed]:
    """Return requests of mixed sizes and steps that come at random, `per_second` of them on average."""
    dice = random.Random(seed)
    now, asked = 0.0, []
    for number in range(count):
        now += dice.expovariate(per_second)
        side, steps = dice.choice(SIDES), dice.choice(STEPS)
        request = GenerationRequest(
            prompt=f"image {number}", seed=number, width=side, height=side, num_inference_steps=steps
        )
        asked.append(Timed(now, request))
    return asked


def as_asked(traffic: list[Timed], costs: list[Cost]) -> tuple[list[Asked], float]:
    """Return what the lower bounds need to know of it, and the workers' speed together."""
    fastest = min(costs, key=lambda cost: cost.slow)
    by_work = fastest.by_work
    unit = fastest._replace(slow=1.0)
    full = unit.seconds(MAX_BATCH_SIZE) / MAX_BATCH_SIZE
    asked = []
    for each in traffic:
        size = work(each.request, by_work=by_work)
        asked.append(Asked(each.at, size * full, size * fastest.seconds(1)))
    return asked, sum(1 / cost.slow for cost in costs)

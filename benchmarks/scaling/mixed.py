"""Requests of unlike sizes and steps on workers with continuous batching, on simulated time."""

import random
from collections.abc import Iterator, Sequence
from statistics import mean
from typing import Any, NamedTuple

from benchmarks.scaling import ideal, on_simulated_time
from benchmarks.scaling.ideal import MAX_BATCH_SIZE, Asked
from benchmarks.scaling.traffic import Timed
from benchmarks.simulated.continuous import ForwardCost
from imagegen_protocol import GenerationRequest

GPUS = {"5 ms": (0.005, 0.07), "35 ms": (0.035, 0.046), "100 ms": (0.1, 0.02)}
"""Seconds per forward, and per image and megapixel, by the name of the former."""
LOADS = (0.6, 0.8, 0.95)
SLOWDOWN = 5.0
"""Latency over the time alone that a user accepts."""
_USUAL_BATCH = 4
"""Images of a forward that the load assumes."""


class Kind(NamedTuple):
    """A kind of request and its share of the traffic."""

    side: int
    steps: int
    share: float

    @property
    def megapixels(self) -> float:
        """The size of its image."""
        return self.side**2 / 1e6


KINDS = (
    Kind(512, 20, 0.40),
    Kind(512, 4, 0.10),
    Kind(768, 28, 0.15),
    Kind(1024, 30, 0.25),
    Kind(1024, 50, 0.07),
    Kind(1536, 30, 0.03),
)


def slownesses() -> dict[str, list[float]]:
    """Return the fleets by name; each worker is so many times slower than a reference one."""
    dice = random.Random(3)
    return {
        "4 equal": [1.0] * 4,
        "2 × 1.0, 2 × 2.5": [1.0, 1.0, 2.5, 2.5],
        "8, 1.0 to 3.0": [round(dice.uniform(1.0, 3.0), 2) for _ in range(8)],
    }


def arrivals(count: int, load: float, costs: Sequence[ForwardCost], seed: int) -> list[Timed]:
    """Return requests of `KINDS` at random times that keep the workers busy for `load` of the time.

    The load assumes forwards of four images.
    """
    dice = random.Random(seed)
    one = costs[0]
    kinds = [(kind, one.fixed / _USUAL_BATCH + one.per_megapixel * kind.megapixels) for kind in KINDS]
    work = sum(kind.share * kind.steps * seconds for kind, seconds in kinds)
    per_second = load * sum(1 / cost.slow for cost in costs) / work
    now, asked = 0.0, []
    for number in range(count):
        now += dice.expovariate(per_second)
        (kind,) = dice.choices(KINDS, [kind.share for kind in KINDS])
        request = GenerationRequest(
            prompt="p", seed=number, width=kind.side, height=kind.side, num_inference_steps=kind.steps
        )
        asked.append(Timed(now, request))
    return asked


def rows(
    count: int, loads: Sequence[float], seeds: Sequence[int], strategies: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield latencies in seconds for each fleet, GPU, load and strategy, averaged over the seeds."""
    for fleet, slows in slownesses().items():
        for gpu, (fixed, per_megapixel) in GPUS.items():
            costs = [ForwardCost(fixed, per_megapixel, slow) for slow in slows]
            for load in loads:
                traffic = [arrivals(count, load, costs, seed) for seed in seeds]
                least = mean(least_mean(asked, costs) for asked in traffic)
                for strategy in strategies:
                    found = [figures(asked, costs, strategy) for asked in traffic]
                    averages = {name: mean(each[name] for each in found) for name in found[0]}
                    about = {"fleet": fleet, "forward": gpu, "load": load, "strategy": strategy}
                    yield about | averages | {"least_mean": least}


def alone_seconds(request: GenerationRequest, costs: Sequence[ForwardCost]) -> float:
    """Return the time of a request on an idle fleet."""
    megapixels = (request.width or 0) * (request.height or 0) / 1e6
    return (request.num_inference_steps or 0) * min(cost.seconds(megapixels, 1) for cost in costs)


def figures(asked: Sequence[Timed], costs: Sequence[ForwardCost], strategy: str) -> dict[str, float]:
    """Return the mean and two quantiles of the latency, and what they are of the time alone."""
    found = on_simulated_time.run(asked, costs, strategy)
    slowdowns = [seconds / alone_seconds(each.request, costs) for each, seconds in zip(asked, found, strict=True)]
    ordered = sorted(found)
    return {
        "mean": mean(found),
        "p95": ordered[int(0.95 * len(ordered))],
        "p99": ordered[int(0.99 * len(ordered))],
        "slowdown": mean(slowdowns),
        "within": mean(slowdown <= SLOWDOWN for slowdown in slowdowns),
    }


def least_mean(asked: Sequence[Timed], costs: Sequence[ForwardCost]) -> float:
    """Return a lower bound of the mean latency: a clairvoyant scheduler, whose batches are always full."""
    one = costs[0]._replace(slow=1.0)
    known = []
    for each in asked:
        request = each.request
        megapixels = (request.width or 0) * (request.height or 0) / 1e6
        work = (request.num_inference_steps or 0) * one.seconds(megapixels, MAX_BATCH_SIZE) / MAX_BATCH_SIZE
        known.append(Asked(each.at, work, alone_seconds(request, costs)))
    return ideal.least_mean(known, sum(1 / cost.slow for cost in costs))


def show(row: dict[str, Any]) -> str:
    """Return a row of the table in Markdown."""
    figures = f"{row['mean']:.2f} ({row['mean'] / row['least_mean']:.2f}) | {row['p95']:.1f} | {row['p99']:.1f}"
    about = f"{row['fleet']} | {row['forward']} | {row['load']:.0%} | {row['strategy']}"
    return f"| {about} | {figures} | {row['slowdown']:.2f} | {row['within']:.2f} |"

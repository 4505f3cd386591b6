"""Turns within one worker: latency of mixed requests by the rule that selects the next group, on simulated time.

Run it as `python -m benchmarks.turns`. The real engine runs requests of mixed sizes and steps, which arrive at
random (Poisson) times. A forward of n images of m megapixels takes `FORWARD_SECONDS + MEGAPIXEL_SECONDS * m * n`.
"""

import random
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest import mock

import click
from PIL import Image

from imagegen_common.command_line import IntegerRange
from imagegen_worker.backends import OnStep, Row
from imagegen_worker.core import events as ev
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous import ContinuousEngine, turns
from imagegen_worker.engines.continuous.calls import Call, current_task, wait_for_forward
from imagegen_worker.engines.continuous.timing import WallTimer
from imagegen_worker.mailbox import Mailbox

FORWARD_SECONDS, MEGAPIXEL_SECONDS = 0.035, 0.046
"""About SDXL on an H100, without compilation."""
KINDS = ((512, 20, 0.40), (512, 4, 0.10), (768, 28, 0.15), (1024, 30, 0.25), (1024, 50, 0.07), (1536, 30, 0.03))
"""Side in pixels, steps, and share of the requests."""
SLOTS = 8
_IMAGE = Image.new("L", (1, 1))

Choose = Callable[[Mapping[Hashable, turns.WaitingGroup]], Hashable]


def forward_seconds(megapixels: float) -> float:
    """Return the seconds of a forward of so many megapixels."""
    return FORWARD_SECONDS + MEGAPIXEL_SECONDS * megapixels


class Clock:
    """Simulated time in seconds."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FairTurns:
    """Gives each image the same share of the device's time: the alternative to `turns.choose`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._used: dict[Hashable, float] = {}
        self._last: tuple[Hashable, int, float] | None = None

    def __call__(self, groups: Mapping[Hashable, turns.WaitingGroup]) -> Hashable:
        """Return the group that has used least, and charge the one before with the time that has passed."""
        if self._last is not None:
            key, images, at = self._last
            self._used[key] = self._used.get(key, 0.0) + (self._clock() - at) / images
        least = min((self._used[key] for key in groups if key in self._used), default=0.0)
        self._used = {key: max(self._used.get(key, least), least) for key in groups}
        chosen = min(groups, key=self._used.__getitem__)
        self._last = (chosen, groups[chosen].images, self._clock())
        return chosen


def first_come(groups: Mapping[Hashable, turns.WaitingGroup]) -> Hashable:
    """Return the group whose oldest request started first."""
    return max(groups, key=lambda key: groups[key].age)


class Denoiser:
    """A stage whose forwards take simulated time."""

    name, is_denoiser, is_decoder, exclusive, fixed_rows = "denoiser", True, False, False, None

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def describe(self, call: Call) -> None:
        """Set the key: images of the same size share forwards."""
        call.key = call.task.megapixels

    def run(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        """Run the calls in forwards of at most `max_rows` images."""
        rows = sum(call.rows for call in calls)
        for begin in range(0, rows, max_rows):
            self._clock.now += forward_seconds(calls[0].task.megapixels * min(max_rows, rows - begin))
        return [None for _ in calls]


class Backend:
    """Generates images by as many forwards as steps."""

    def __init__(self, clock: Clock) -> None:
        self._stage: Any = Denoiser(clock)
        self.timer = WallTimer(clock)

    def session(self) -> AbstractContextManager[None]:
        """Return a context that does nothing."""
        return nullcontext()

    def call_key(self, request: ResolvedRequest) -> None:
        """Return None: each image has a call of its own."""

    def drops_rows(self, request: ResolvedRequest) -> bool:
        """Return False."""
        return False

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """Return no warnings."""
        return ()

    def generate(self, rows: Sequence[Row], on_step: OnStep) -> list[Image.Image]:
        """Run the forwards of one image."""
        steps = rows[0].request.num_inference_steps
        for step in range(1, steps + 1):
            task = current_task()
            assert task is not None
            wait_for_forward(Call(self._stage, (), {}, task))
            on_step(step, steps)
        return [_IMAGE]


class Arrivals(Mailbox):
    """Gives the engine each job at its time of arrival, and records when it ends."""

    def __init__(self, clock: Clock, jobs: Sequence[ev.Job]) -> None:
        super().__init__()
        self._clock = clock
        self._jobs = list(reversed(jobs))
        self.ends: dict[int, float] = {}

    def take(self, timeout: float | None) -> ev.Command | None:
        """Return the next job that has arrived; wait for one if `timeout` is None."""
        if timeout is None and not self._jobs:
            return ev.Stop()
        if not self._jobs or (timeout is not None and self._jobs[-1].arrived > self._clock.now):
            return None
        job = self._jobs.pop()
        self._clock.now = max(self._clock.now, job.arrived)
        return job

    def post(self, event: Any) -> None:
        """Ignore the events of the engine."""

    def submit(self, raw: Any) -> None:
        """Record the end of a job, in place of an encoder."""
        self.ends[raw.number] = self._clock.now


def make_jobs(count: int, load: float, seed: int) -> list[ev.Job]:
    """Return jobs whose device seconds, in full batches, are `load` of the time in which they arrive."""
    chance = random.Random(seed)
    shares = [share for *_, share in KINDS]
    mean = sum(s * n * (FORWARD_SECONDS / 4 + MEGAPIXEL_SECONDS * side**2 / 1e6) for side, n, s in KINDS)
    jobs, now = [], 0.0
    for number in range(count):
        now += chance.expovariate(load / mean)
        side, steps, _ = chance.choices(KINDS, shares)[0]
        request = ResolvedRequest(
            model="m",
            prompt="",
            negative_prompt=None,
            seeds=(number,),
            num_inference_steps=steps,
            guidance_scale=None,
            width=side,
            height=side,
        )
        jobs.append(ev.Job(number, request, now))
    return jobs


@dataclass(frozen=True, slots=True)
class Outcome:
    """Latencies in seconds, and slowdowns: latencies divided by the time that a request takes alone."""

    latencies: list[float]
    slowdowns: list[float]

    def row(self) -> list[float]:
        """Return mean, p95 and p99 of the latencies, and mean and p95 of the slowdowns."""
        latency, slowdown = (statistics.quantiles(each, n=100) for each in (self.latencies, self.slowdowns))
        means = statistics.fmean(self.latencies), statistics.fmean(self.slowdowns)
        return [means[0], latency[94], latency[98], means[1], slowdown[94]]


def simulate(rule: Callable[[Clock], Choose], jobs: Sequence[ev.Job]) -> Outcome:
    """Run the jobs on one worker."""
    clock = Clock()
    arrivals = Arrivals(clock, jobs)
    engine = ContinuousEngine(
        Backend(clock),
        arrivals,  # type: ignore[arg-type]  # in place of the encoders
        max_batch_size=SLOTS,
        clock=clock,
    )
    with mock.patch("imagegen_worker.engines.continuous.scheduler.choose", rule(clock)):
        engine.run(arrivals)
    arrivals.close()
    latencies = [arrivals.ends[job.number] - job.arrived for job in jobs]
    alone = [job.request.num_inference_steps * forward_seconds(job.request.megapixels) for job in jobs]
    return Outcome(latencies, [took / least for took, least in zip(latencies, alone, strict=True)])


RULES: dict[str, Callable[[Clock], Choose]] = {
    "first come, first served": lambda clock: first_come,
    "fair turns": FairTurns,
    "soonest end, with ageing": lambda clock: turns.choose,
}


@click.command()
@click.option("--requests", type=IntegerRange(10), default=1500, show_default=True, help="Requests of each run.")
@click.option("--seeds", type=IntegerRange(1), default=3, show_default=True, help="Runs of each case.")
def main(requests: int, seeds: int) -> None:
    """Print a table of latencies and slowdowns by rule and load."""
    click.echo("| load | rule | mean s | p95 s | p99 s | mean slowdown | p95 slowdown |\n" + "|---|" + "---|" * 6)
    for load in (0.6, 0.8, 0.95):
        for name, rule in RULES.items():
            rows = [simulate(rule, make_jobs(requests, load, seed)).row() for seed in range(seeds)]
            means = " | ".join(f"{statistics.fmean(column):.2f}" for column in zip(*rows, strict=True))
            click.echo(f"| {load} | {name} | {means} |")


if __name__ == "__main__":
    main()

"""The costs of a real pipeline's requests, on a clock that passes only in its models."""

import itertools
import random

import pytest
import torch

from imagegen_worker.core import events as ev
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous import ContinuousEngine
from imagegen_worker.engines.continuous.timing import WallTimer
from imagegen_worker.mailbox import Mailbox
from tests.integration.continuous.helpers import Backend, patched, requests, run

# diffusers' schedulers convert tensors to numpy arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FORWARD, MEGAPIXEL, TEXT, DECODE = 0.03, 20.0, 0.05, 40.0
"""Simulated seconds: of a forward, per image and megapixel in it, of a prompt, per megapixel to decode."""


class Encoder:
    """Ignores the images."""

    def submit(self, raw):
        pass


class Script(Mailbox):
    """Gives the engine a new job at every third look while others run, and `Stop` after the last one."""

    def __init__(self, jobs):
        super().__init__()
        self.jobs = list(jobs)
        self.looks = itertools.count(1)
        self.measured = []

    def take(self, timeout):
        if timeout is None and not self.jobs:
            return ev.Stop()
        due = timeout is None or next(self.looks) % 3 == 0
        return self.jobs.pop(0) if due and self.jobs else None

    def post(self, event):
        if isinstance(event, ev.CostsMeasured):
            self.measured.append(event)


def jobs(count):
    chance = random.Random(7)
    for number in range(count):
        request = ResolvedRequest(
            model="tiny",
            prompt=f"a cat, number {number}",
            negative_prompt=None,
            seeds=tuple(range(chance.choice((1, 1, 2)))),
            num_inference_steps=chance.choice((1, 2, 5)),
            guidance_scale=5.0,
            width=chance.choice((32, 64, 96)),
            height=64,
        )
        yield ev.Job(number, request, 0.0)


@pytest.fixture
def clock(sdxl, monkeypatch):
    """Let simulated time pass in the models of the pipeline; return a function that tells it."""
    now = [0.0]

    def passes(module, seconds, method="forward"):
        def forward(original, *args, **kwargs):
            now[0] += seconds(args[0] if args else next(iter(kwargs.values())))
            return original(*args, **kwargs)

        patched(monkeypatch, module, forward, method)

    pipeline = sdxl.pipeline
    scale = pipeline.vae_scale_factor**2 / 1e6
    # Two rows for an image, because of guidance.
    passes(pipeline.unet, lambda x: FORWARD + MEGAPIXEL * scale * x[0, 0].numel() * len(x) / 2)
    passes(pipeline.vae, lambda x: DECODE * scale * x[0, 0].numel() * len(x), "decode")
    passes(pipeline.text_encoder, lambda ids: TEXT * len(ids))
    return lambda: now[0]


def test_after_20_mixed_requests_those_of_a_real_pipeline_are_predicted_within_15_percent(
    sdxl, make_batcher, clock
):
    batcher = make_batcher(sdxl.pipeline)
    run(batcher, list(requests(sdxl)))  # as a worker does before it registers: the first forwards are compared
    backend = Backend(batcher, sdxl.arguments, shares_calls=False)
    backend.timer = WallTimer(clock)
    mailbox = Script(jobs(30))
    with torch.no_grad():
        ContinuousEngine(backend, Encoder(), max_batch_size=4, clock=clock).run(mailbox)
    mailbox.close()
    assert len(mailbox.measured) == 30
    costs = mailbox.measured[-1].costs
    errors = [abs(each.predicted / each.seconds - 1) for each in mailbox.measured[20:]]
    assert sum(errors) / len(errors) < 0.15
    assert costs.forward_seconds == pytest.approx(FORWARD, rel=0.05)
    assert costs.megapixel_seconds == pytest.approx(MEGAPIXEL, rel=0.05)
    assert costs.decode_megapixel_seconds == pytest.approx(DECODE, rel=0.05)

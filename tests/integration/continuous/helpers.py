"""Requests for stock pipelines, run alone and in a batch, and the differences of their images."""

import functools
import types

import pytest
import torch

from imagegen_worker.core import events as ev
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous import ContinuousEngine
from imagegen_worker.engines.continuous.scheduler import BatchScheduler
from imagegen_worker.mailbox import Mailbox
from tests.equality import TOLERANCE as TOLERANCE

PROMPTS = ("a red cat", "a long dog in the rain, at night", "two trees", "a house by the sea")


def requests(family, count=4):
    """Yield the arguments of calls that differ in prompt, steps and guidance."""
    for index in range(count):
        arguments = dict(family.arguments, prompt=PROMPTS[index % 4], num_inference_steps=(4, 6, 5, 3)[index % 4])
        if family.guidances:
            arguments["guidance_scale"] = family.guidances[index % len(family.guidances)]
        if family.negative_prompt and index % 2:
            arguments["negative_prompt"] = "blurry"
        yield arguments


def stock(pipeline, arguments, seed):
    """Return the image of the unmodified pipeline."""
    return pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(seed)).images[0]


def run(
    batcher, calls, arrivals=None, *, events=None, each_step=lambda scheduler, tasks, tick: None, pipelines=None
):
    """Run calls, with their index as seed; `arrivals`: forwards before each call. Return their tasks."""
    tasks = []
    with batcher.session():
        scheduler = BatchScheduler(
            observe=(lambda event: None) if events is None else events.append, timer=batcher.timer
        )
        tick = 0
        while True:
            while len(tasks) < len(calls) and (arrivals is None or arrivals[len(tasks)] <= tick):
                index = len(tasks)
                pipeline = None if pipelines is None else pipelines[index]
                work = functools.partial(batcher.generate, calls[index], index, pipeline=pipeline)
                tasks.append(scheduler.start(work))
            each_step(scheduler, tasks, tick)
            tick += 1
            if not scheduler.step() and len(tasks) == len(calls):
                return tasks


def settled(batcher, family):
    """Run one request, which shows that the models keep no state: others then share from their first step."""
    run(batcher, list(requests(family, 1)))


def difference(task, image):
    if task.error is not None:
        raise task.error
    return (task.result - image).abs().max().item()


def patched(monkeypatch, module, forward, method="forward"):
    """Replace a model's forward before it is wrapped."""
    original = getattr(module, method)
    monkeypatch.setattr(module, method, functools.wraps(original)(functools.partial(forward, original)))


def rows_of(args, kwargs):
    """Return the rows of a call, whose first argument may be a keyword."""
    return len(args[0] if args else next(iter(kwargs.values())))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Backend:
    """Implements `StepwiseBackend` with one pipeline."""

    def __init__(self, batcher, arguments, shares_calls):
        self.batcher = batcher
        self.arguments = arguments
        self.timer = batcher.timer
        self.call_key = lambda request: request.batch_key if shares_calls else None
        self.drops_rows = lambda request: True
        self.warnings = lambda request: ()

    def session(self):
        return self.batcher.session()

    def generate(self, rows, on_step):
        request = rows[0].request
        prompts = [row.request.prompt for row in rows]
        arguments = dict(
            self.arguments,
            prompt=prompts if len(rows) > 1 else prompts[0],
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            height=request.height,
            width=request.width,
            output_type="pil",
        )
        return self.batcher.generate_all(arguments, [row.seed for row in rows], on_step)


class Script(Mailbox):
    """Returns its commands one at a time, and `Stop` when nothing is left to do."""

    def __init__(self, commands):
        super().__init__()
        self.commands = iter(commands)
        self.posted = []

    def take(self, timeout):
        return next(self.commands, ev.Stop() if timeout is None else None)

    def post(self, event):
        self.posted.append(event)


def job(number, *, seeds=(0,), steps=2, guidance=5.0, prompt="a cat"):
    request = ResolvedRequest(
        model="sdxl",
        prompt=prompt,
        negative_prompt=None,
        seeds=tuple(seeds),
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=64,
        height=64,
    )
    return ev.Job(number, request, arrived=0.0)


def serve(batcher, arguments, commands, max_batch_size=8, *, shares_calls=True):
    """Run an engine on these commands; return its events and the images by job."""
    mailbox, images = Script(commands), {}
    encoder = types.SimpleNamespace(submit=lambda raw: images.__setitem__(raw.number, raw.images))
    backend = Backend(batcher, arguments, shares_calls)
    ContinuousEngine(backend, encoder, max_batch_size=max_batch_size).run(mailbox)
    mailbox.close()
    return mailbox.posted, images

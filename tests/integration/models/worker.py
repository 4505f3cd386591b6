"""A worker's device and engine, run on requests in the thread of the test."""

import types

import torch

from imagegen_protocol.request import make_request
from imagegen_worker.backends.factory import LoadedEngine
from imagegen_worker.config import WorkerConfig
from imagegen_worker.core import events as ev
from imagegen_worker.images.decoding import decode_inputs
from imagegen_worker.mailbox import Mailbox

SIZED = {"width": 64, "height": 64, "num_inference_steps": 2}


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


def make_images(model, *requests, **settings):
    """Load a model as a worker does and run requests; return the model and the images by request.

    The `frames` of a request are its encoded input images.
    """
    defaults = {"models": (str(model),), "device": "cpu", "max_batch_size": 2, "torch_threads": 1}
    config = WorkerConfig(**{**defaults, **settings})
    made = {}
    encoder = types.SimpleNamespace(submit=lambda raw: made.__setitem__(raw.number, raw.images))
    device = LoadedEngine(config, encoder)
    described = device.ready.models[0]
    asked = requests or ({},)
    jobs = [ev.Job(number, _resolve(described, each), 0.0) for number, each in enumerate(asked)]
    mailbox = Script(jobs)
    try:
        device.engine.run(mailbox)
    finally:
        mailbox.close()
        device.close()
    failed = [event for event in mailbox.posted if isinstance(event, ev.Failed)]
    assert not failed, failed
    return described, [made[number][0] for number in range(len(asked))]


def _resolve(model, fields):
    frames = fields.get("frames", ())
    named = {name: value for name, value in fields.items() if name != "frames"}
    request = make_request(**{"prompt": "a cat", "seed": 3, **SIZED, **named})
    return decode_inputs(request, model, frames) if frames else model.resolve(request)


def stock_image(pipeline, **more):
    """Return the image of the unmodified pipeline for the same request."""
    arguments = {"prompt": "a cat", **SIZED, **more}
    return pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(3)).images[0]

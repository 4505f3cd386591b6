"""A worker's device and engine, run on requests in the thread of the test."""

import types

import torch

from imagegen_protocol.request import make_request
from imagegen_worker.backends import completed
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


class LoadedWorker:
    """A model that was loaded as a worker does, and its engine."""

    def __init__(self, model, **settings):
        defaults = {"models": (str(model),), "device": "cpu", "max_batch_size": 2, "torch_threads": 1}
        config = WorkerConfig(**{**defaults, **settings})
        self._made = {}
        encoder = types.SimpleNamespace(submit=lambda raw: self._made.__setitem__(raw.number, raw.images))
        self._device = LoadedEngine(config, encoder)
        self.described = self._device.ready.models[0]
        self.close = self._device.close

    def run(self, *requests):
        """Return the images of requests by request, which may still be on their way to the host."""
        asked = [_resolve(self.described, each) for each in requests or ({},)]
        mailbox = Script(ev.Job(number, each, 0.0) for number, each in enumerate(asked))
        try:
            self._device.engine.run(mailbox)
        finally:
            mailbox.close()
        failed = [event for event in mailbox.posted if isinstance(event, ev.Failed)]
        assert not failed, failed
        return [self._made[number][0] for number in range(len(asked))]


def make_images(model, *requests, **settings):
    """Load a model as a worker does and run requests; return the model and the images by request.

    The `frames` of a request are its encoded input images.
    """
    worker = LoadedWorker(model, **settings)
    try:
        return worker.described, [completed(image) for image in worker.run(*requests)]
    finally:
        worker.close()


def _resolve(model, fields):
    frames = fields.get("frames", ())
    named = {name: value for name, value in fields.items() if name != "frames"}
    request = make_request(**{"prompt": "a cat", "seed": 3, **SIZED, **named})
    return decode_inputs(request, model, frames) if frames else model.resolve(request)


def stock_image(pipeline, **more):
    """Return the image of the unmodified pipeline for the same request."""
    arguments = {"prompt": "a cat", **SIZED, **more}
    return pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(3)).images[0]

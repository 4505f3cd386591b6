"""Failures of one request, and short memory, do not affect other requests."""

import types

import pytest
import torch

from imagegen_worker.backends import DeviceMemoryError, StoppedError
from imagegen_worker.backends.diffusers import StepwiseDiffusers
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.config import LoadOptions
from imagegen_worker.core import events as ev
from imagegen_worker.engines.continuous import ContinuousEngine
from imagegen_worker.engines.continuous.scheduler import ForwardDone, ForwardSplit
from tests.families import FAMILIES
from tests.integration.continuous.helpers import (
    TOLERANCE,
    Script,
    difference,
    job,
    patched,
    requests,
    rows_of,
    run,
    settled,
    stock,
)

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("at", [1, 3, 6])
def test_cancelling_one_request_does_not_affect_others(sdxl, make_batcher, at):
    calls = [dict(call, num_inference_steps=6) for call in requests(sdxl, 3)]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    batcher = make_batcher(sdxl.pipeline)

    def cancel(scheduler, tasks, tick):
        if tick == at:
            scheduler.cancel(tasks[1])

    tasks = run(batcher, calls, each_step=cancel)
    assert isinstance(tasks[1].error, StoppedError)
    for index in (0, 2):
        assert difference(tasks[index], expected[index]) <= TOLERANCE


def out_of_memory_above(rows, since=0):
    """Return a forward that runs out of memory above `rows` rows, after `since` calls."""
    calls = 0

    def forward(original, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > since and rows_of(args, kwargs) > rows:
            raise torch.OutOfMemoryError(f"more than {rows} rows")
        return original(*args, **kwargs)

    return forward


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("since", [0, 3, 6])
def test_out_of_memory_in_the_denoiser_loses_nothing(sdxl, make_batcher, monkeypatch, rows, since):
    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, sdxl.pipeline.unet, out_of_memory_above(rows, since))
    events = []
    tasks = run(make_batcher(sdxl.pipeline), calls, (0, 0, 1, 2), events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert any(isinstance(event, ForwardSplit) for event in events)


@pytest.mark.parametrize("name", ["z-image", "flux2-klein"])
def test_lists_are_split_when_memory_is_short(make_batcher, monkeypatch, name):
    family = FAMILIES[name]()
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, family.pipeline.transformer, out_of_memory_above(1))
    for task, image in zip(run(make_batcher(family.pipeline), calls), expected, strict=True):
        assert difference(task, image) <= TOLERANCE


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_out_of_memory_in_decoder_and_encoders_loses_nothing(sdxl, make_batcher, monkeypatch, part):
    calls = [dict(call, num_inference_steps=3) for call in requests(sdxl)]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    module = getattr(sdxl.pipeline, part)
    method = "decode" if part == "vae" else "forward"
    patched(monkeypatch, module, out_of_memory_above(1), method)
    events = []
    batcher = make_batcher(sdxl.pipeline)
    settled(batcher, sdxl)
    tasks = run(batcher, calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert any(isinstance(event, ForwardSplit) for event in events)


def test_a_request_that_does_not_fit_fails_alone(sdxl, make_batcher, monkeypatch):
    def forward(original, sample, *args, **kwargs):
        if sample.shape[-1] > 8:
            raise torch.OutOfMemoryError("too big")
        return original(sample, *args, **kwargs)

    calls = list(requests(sdxl, 3))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, sdxl.pipeline.unet, forward)
    calls[1] |= {"height": 128, "width": 128}
    tasks = run(make_batcher(sdxl.pipeline), calls)
    assert isinstance(tasks[1].error, DeviceMemoryError)
    for index in (0, 2):
        assert difference(tasks[index], expected[index]) <= TOLERANCE


def test_out_of_memory_outside_of_a_forward_fails_its_request(sdxl, make_batcher, monkeypatch):
    def encode(*args, **kwargs):
        raise torch.OutOfMemoryError("encoding")

    other = FAMILIES["sdxl-img2img"]()
    pipeline = type(other.pipeline).from_pipe(sdxl.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    calls = [next(requests(sdxl)), next(requests(other))]
    image = stock(sdxl.pipeline, calls[0], 0)
    monkeypatch.setattr(sdxl.pipeline.vae, "encode", encode)
    events = []
    tasks = run(make_batcher(sdxl.pipeline), calls, pipelines=[sdxl.pipeline, pipeline], events=events)
    assert isinstance(tasks[1].error, DeviceMemoryError)
    assert difference(tasks[0], image) <= TOLERANCE
    (split,) = [event for event in events if isinstance(event, ForwardSplit)]
    assert (split.stage.name, split.max_rows) == ("vae.encode", 0)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 12 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_on_the_cpu_loses_nothing(sdxl, make_batcher, monkeypatch, error):
    def forward(original, *args, **kwargs):
        if rows_of(args, kwargs) > 3:
            raise error
        return original(*args, **kwargs)

    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, sdxl.pipeline.unet, forward)
    events = []
    tasks = run(make_batcher(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert any(isinstance(event, ForwardSplit) for event in events)
    assert "error" not in {event.fallback for event in events if isinstance(event, ForwardDone)}


def test_the_engine_uses_the_memory_limits_of_the_warm_up(sdxl, monkeypatch, tmp_path):
    sdxl.pipeline.save_pretrained(tmp_path)
    options = LoadOptions(device="cpu", threads=1)
    backend = StepwiseDiffusers(tmp_path, "sdxl", options, max_batch_size=4)
    load = LoadedPipeline.__init__

    def loading(self, *arguments):
        load(self, *arguments)
        patched(monkeypatch, self.pipeline.unet, out_of_memory_above(4))

    monkeypatch.setattr(LoadedPipeline, "__init__", loading)
    (model,) = backend.warm_up().models
    mailbox, images = Script([job(number, steps=3) for number in range(4)]), {}
    encoder = types.SimpleNamespace(submit=lambda raw: images.__setitem__(raw.number, raw.images))
    memory_limits = {"memory_limits": backend.memory_limits, "costs": backend.costs}
    ContinuousEngine(backend, encoder, max_batch_size=4, **memory_limits).run(mailbox)
    mailbox.close()
    backend.close()
    assert (model.width, len(images)) == (64, 4)
    assert not [event for event in mailbox.posted if isinstance(event, ev.CallFailed)]

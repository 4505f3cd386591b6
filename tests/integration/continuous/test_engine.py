"""Steps, prompts, leaks, and the engine as a whole."""

import gc

import diffusers
import pytest
import torch
from greenlet import greenlet

from imagegen_worker.backends.diffusers.batched_module import BatchedModule
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.core import events as ev
from imagegen_worker.engines.continuous.scheduler import BatchScheduler
from tests.equality import bits_or, same_bits, same_image
from tests.families import FAMILIES
from tests.integration.continuous.helpers import (
    TOLERANCE,
    difference,
    job,
    patched,
    requests,
    rows_of,
    run,
    serve,
    stock,
)

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.mark.parametrize("name", ["sdxl", "sdxl-img2img", "pixart-sigma"])
def test_steps_are_reported(make_batcher, name):
    family = FAMILIES[name]()  # PixArt has no callback_on_step_end: its scheduler tells
    batcher = make_batcher(family.pipeline)
    told = []
    call = next(requests(family))
    with batcher.session():
        scheduler = BatchScheduler()
        scheduler.start(lambda: batcher.generate(call, 0, lambda step, steps: told.append((step, steps))))
        while scheduler.step():
            pass
    steps = told[-1][1]
    assert told == [(step, steps) for step in range(1, steps + 1)]
    assert steps == (2 if name == "sdxl-img2img" else 4)


def test_equal_prompts_are_encoded_once(sdxl, make_batcher, monkeypatch):
    encoded = []

    def counting(original, *args, **kwargs):
        encoded.append(args[0].shape[0])
        return original(*args, **kwargs)

    patched(monkeypatch, sdxl.pipeline.text_encoder, counting)
    calls = [dict(next(requests(sdxl)), negative_prompt="blurry")] * 4
    expected = [stock(sdxl.pipeline, calls[0], seed) for seed in range(4)]
    encoded.clear()
    batcher = make_batcher(sdxl.pipeline)
    tasks = run(batcher, calls)
    assert len(encoded) == 2
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    (task,) = run(batcher, calls[:1])
    assert len(encoded) == 2
    assert difference(task, expected[0]) <= bits_or(TOLERANCE)


@pytest.mark.parametrize("name", ["sdxl", "z-image"])
def test_hooks_that_an_encoder_adds_to_itself_do_not_keep_it_from_the_cache(name, make_batcher):
    batcher = make_batcher(FAMILIES[name]().pipeline)  # new: transformers adds its hooks in the first forward
    run(batcher, [next(requests(FAMILIES[name]()))])
    misses = batcher._prompts.misses
    run(batcher, [next(requests(FAMILIES[name]()))])
    assert batcher._prompts.hits
    assert batcher._prompts.misses == misses


def test_a_call_for_several_images_encodes_each_prompt_once(sdxl, make_batcher, monkeypatch):
    encoded = []

    def counting(original, *args, **kwargs):
        encoded.append(rows_of(args, kwargs))
        return original(*args, **kwargs)

    patched(monkeypatch, sdxl.pipeline.text_encoder, counting)
    arguments = dict(sdxl.arguments, output_type="pil")
    jobs = [job(number, prompt=prompt) for number, prompt in enumerate(["a cat", "a dog", "a cat", "a cat"])]
    batcher = make_batcher(sdxl.pipeline)
    _, images = serve(batcher, arguments, jobs)
    # Two prompts in one forward, then compared once: with each alone, with each other's ids, and with all four.
    assert encoded == [2, 1, 1, 1, 1, 4]
    serve(batcher, arguments, jobs[1:])
    assert encoded == [2, 1, 1, 1, 1, 4]
    assert same_bits(images[0][0], images[2][0])  # all of one seed
    assert not same_image(images[0][0], images[1][0])


def test_the_prompt_cache_is_bounded(sdxl, make_batcher):
    batcher = make_batcher(sdxl.pipeline, prompt_cache_bytes=100_000)
    for index in range(8):
        run(batcher, [dict(next(requests(sdxl)), prompt=f"cat {index}", num_inference_steps=1)])
    assert 0 < batcher._prompts.nbytes <= 100_000


def test_gradients_are_disabled_in_tasks_and_unchanged_outside(sdxl, make_batcher):
    seen = []

    def look(scheduler, tasks, tick):
        seen.append(torch.is_grad_enabled())

    assert torch.is_grad_enabled()
    calls = list(requests(sdxl))
    tasks = run(make_batcher(sdxl.pipeline), calls, each_step=look)  # some end before others
    assert not any(seen)
    assert torch.is_grad_enabled()
    assert not any(task.result.requires_grad for task in tasks)


def test_closing_restores_the_pipeline(sdxl):
    pipeline = sdxl.pipeline
    before = pipeline.unet.forward, pipeline.vae.decode, pipeline.text_encoder.forward
    batcher = PipelineBatcher(pipeline)
    assert isinstance(pipeline.unet.forward.stage, BatchedModule)
    batcher.close()
    assert (pipeline.unet.forward, pipeline.vae.decode, pipeline.text_encoder.forward) == before


def test_the_engine_generates_the_images_of_requests_alone(sdxl, make_batcher):
    arguments = dict(sdxl.arguments, output_type="pil")
    expected = [
        stock(sdxl.pipeline, dict(arguments, prompt="a cat", num_inference_steps=3, guidance_scale=5.0), seed)
        for seed in (5, 6, 7)
    ]
    posted, images = serve(make_batcher(sdxl.pipeline), arguments, [job(1, seeds=(5, 6, 7), steps=3)])
    for image, same in zip(images[1], expected, strict=True):
        assert same_image(image, same)
    done = [event for event in posted if isinstance(event, ev.CallDone)]
    assert max(call.requests for call in done) == 3
    assert max(call.rows for call in done) == 6
    assert sum(call.images for call in done) == 3


def test_two_hundred_requests_leak_nothing(sdxl, make_batcher):
    batcher = make_batcher(sdxl.pipeline)

    def living():
        gc.collect()
        things = gc.get_objects()
        return (
            sum(issubclass(type(thing), greenlet) for thing in things),
            sum(issubclass(type(thing), torch.Tensor) for thing in things),
            sum(issubclass(type(thing), diffusers.DiffusionPipeline) for thing in things),
        )

    def commands(count):
        for number in range(count):
            yield job(number, steps=1 + number % 3)
            if number % 3:
                yield None  # the engine runs a forward
            if number % 10 == 5:
                yield ev.Cancel(number)

    serve(batcher, sdxl.arguments, [*commands(20), job(20), job(21)])  # the prompt is remembered, both ways
    before = living()
    _, images = serve(batcher, sdxl.arguments, commands(200))
    assert len(images) >= 180
    del images
    assert living() == before

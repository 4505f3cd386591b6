"""Images of each family are equal to the stock images, alone and in any batch."""

import functools
import logging

import diffusers
import pytest
import torch

from imagegen_worker.engines.continuous.scheduler import BatchScheduler
from tests.equality import bits_or
from tests.families import FAMILIES
from tests.integration.continuous.helpers import TOLERANCE, difference, requests, run, settled, stock

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_images_are_equal_alone_and_within_rounding_in_a_batch(family, make_batcher):
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    batcher = make_batcher(family.pipeline)
    (task,) = run(batcher, calls[:1])
    assert difference(task, expected[0]) <= bits_or(TOLERANCE)
    events = []
    tasks = run(batcher, calls, (0, 0, 1, 2), events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) >= 3
    assert {event.fallback for event in events} == {""}


def test_images_alone_after_a_batch_are_equal(family, make_batcher):
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, 0) for call in calls]
    batcher = make_batcher(family.pipeline)
    run(batcher, calls)
    for call, image in zip(calls, expected, strict=True):
        (task,) = run(batcher, [call])
        assert difference(task, image) <= bits_or(TOLERANCE)


def test_deterministic_images_do_not_depend_on_the_batch(family, make_batcher):
    calls = list(requests(family))
    batcher = make_batcher(family.pipeline, fixed_rows=4)
    alone = []
    for seed, call in enumerate(calls):
        with batcher.session():
            scheduler = BatchScheduler()
            task = scheduler.start(functools.partial(batcher.generate, call, seed))
            while scheduler.step():
                pass
        assert difference(task, stock(family.pipeline, call, seed)) <= TOLERANCE
        alone.append(task.result)
    for arrivals in ((0, 0, 0, 0), (0, 1, 1, 3)):
        for task, image in zip(run(batcher, calls, arrivals), alone, strict=True):
            assert difference(task, image) <= bits_or(TOLERANCE)


def test_schedulers_mix_in_one_forward(sdxl, make_batcher):
    kinds = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler", "HeunDiscreteScheduler")
    pipelines = []
    for kind in kinds:
        options = {"clip_sample": False} if kind == "DDIMScheduler" else {}
        scheduler = getattr(diffusers, kind).from_config(sdxl.pipeline.scheduler.config, **options)
        pipelines.append(type(sdxl.pipeline).from_pipe(sdxl.pipeline, scheduler=scheduler))
        pipelines[-1].set_progress_bar_config(disable=True)
    calls = list(requests(sdxl))
    expected = [stock(pipeline, call, i) for i, (pipeline, call) in enumerate(zip(pipelines, calls, strict=True))]
    batcher = make_batcher(sdxl.pipeline)
    settled(batcher, sdxl)
    events = []
    tasks = run(batcher, calls, (0, 0, 1, 1), pipelines=pipelines, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 4


def test_text_to_image_and_image_to_image_share(sdxl, make_batcher):
    pipe = sdxl.pipeline
    others = [FAMILIES[name]() for name in ("sdxl-img2img", "sdxl-inpaint")]
    pipelines = [pipe, *(type(other.pipeline).from_pipe(pipe) for other in others)]
    calls = [next(requests(kind)) for kind in (sdxl, *others)]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    expected = [stock(pipeline, call, i) for i, (pipeline, call) in enumerate(zip(pipelines, calls, strict=True))]
    batcher = make_batcher(pipe)
    settled(batcher, sdxl)
    events = []
    tasks = run(batcher, calls, pipelines=pipelines, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 3


def test_half_precision_in_a_batch(make_batcher):
    family = FAMILIES["sdxl"]()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    family.pipeline.to(torch.bfloat16)
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    tasks = run(make_batcher(family.pipeline), calls)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= 0.05


class OneCall:
    """Requests of a family as one batched call; `expected` are the stock pipeline's images."""

    def __init__(self, family, make_batcher):
        if "mask_image" in family.arguments:
            pytest.skip("inpainting draws the noise of its input for the whole call: such requests share no call")
        calls = list(requests(family))
        common = {name: value for name, value in calls[0].items() if name not in ("prompt", "negative_prompt")}
        self.prompts = [call["prompt"] for call in calls]
        self.expected = [
            stock(family.pipeline, dict(common, prompt=prompt), seed) for seed, prompt in enumerate(self.prompts)
        ]
        self._arguments = dict(common, prompt=self.prompts)
        self._rendezvous = make_batcher(family.pipeline)
        settled(self._rendezvous, family)
        self.events = []

    def run(self, after_step=lambda task: None):
        """Run it and store the scheduler's events; return the images."""
        with self._rendezvous.session():
            scheduler = BatchScheduler(observe=self.events.append)
            seeds = range(len(self.prompts))
            task = scheduler.start(
                lambda: self._rendezvous.generate_all(self._arguments, seeds), images=len(seeds)
            )
            while scheduler.step():
                after_step(task)
        if task.error is not None:
            raise task.error
        return task.result


def apart(image, other):
    return (image - other).abs().max().item()


def test_images_of_a_batched_call_are_equal_within_rounding(family, make_batcher):
    call = OneCall(family, make_batcher)
    for image, same in zip(call.run(), call.expected, strict=True):
        assert apart(image, same) <= TOLERANCE
    assert {event.images for event in call.events} == {len(call.prompts)}
    assert {event.fallback for event in call.events} == {""}


def test_rows_of_cancelled_images_are_left_out(family, make_batcher):
    call = OneCall(family, make_batcher)

    def leave(task):
        if any(event.stage.is_denoiser for event in call.events):
            task.unwanted.update({0, 2})

    images = call.run(leave)
    for index in (1, 3):
        assert apart(images[index], call.expected[index]) <= TOLERANCE
    rows = [event.rows for event in call.events if event.stage.is_denoiser]
    if len(rows) > 2:  # the second was under way already
        assert rows[-1] * 2 == rows[0]

"""Pipelines that keep state between forwards, in their parts or in shared models, give the same images."""

import copy

import pytest
import torch

from imagegen_worker.backends import StoppedError
from imagegen_worker.backends.diffusers.shared_modules import restored_after_errors
from tests.integration.continuous.helpers import TOLERANCE, difference, requests, run, settled, stock
from tests.stateful_families import STATEFUL_FAMILIES

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # about options that a pipeline passes to its inner ones
]


UNBOUNDED = 1e-3
"""Tolerance, over the largest value, for images beyond 1: the random decoder of Kandinsky enlarges rounding."""


def same(tasks, expected):
    """Whether the images equal the expected ones but for rounding."""
    for task, image in zip(tasks, expected, strict=True):
        largest = image.abs().max().item()
        assert difference(task, image) <= (TOLERANCE if largest <= 1 else UNBOUNDED * largest)
    return True


@pytest.mark.parametrize("name", ["hunyuan-image", "kandinsky-combined"])
def test_calls_share_no_state_of_guiders_and_inner_pipelines(name, make_batcher):
    family = STATEFUL_FAMILIES[name]()
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    events = []
    batcher = make_batcher(family.pipeline)
    assert same(run(batcher, calls, (0, 1, 2, 3), events=events), expected)
    settled(batcher, family)
    assert same(run(batcher, calls, events=events), expected)
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 4


@pytest.mark.parametrize("name", ["sdxl-pag", "sana-pag"])
def test_calls_that_replace_attention_processors_run_one_at_a_time(name, make_batcher, caplog):
    family = STATEFUL_FAMILIES[name]()
    calls = [dict(call, pag_scale=scale) for call, scale in zip(requests(family, 3), (3.0, 0.0, 2.0), strict=True)]
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    batcher = make_batcher(family.pipeline)
    events = []
    assert same(run(batcher, calls, events=events), expected)
    assert same(run(batcher, calls, (0, 1, 2)), expected)
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 1
    assert len([record for record in caplog.records if "one at a time" in record.getMessage()]) == 1


@pytest.mark.parametrize("at", [2, 4, 7])
def test_a_call_that_changes_the_models_does_not_affect_those_that_run(sdxl, make_batcher, at):
    guided = STATEFUL_FAMILIES["sdxl-pag"]
    pipeline = type(guided().pipeline).from_pipe(sdxl.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    calls = [dict(call, num_inference_steps=6) for call in requests(sdxl, 3)]
    calls[2]["pag_scale"] = 3.0
    pipelines = [sdxl.pipeline, sdxl.pipeline, pipeline]
    expected = [stock(pipelines[seed], call, seed) for seed, call in enumerate(calls)]
    batcher = make_batcher(sdxl.pipeline)
    settled(batcher, sdxl)
    assert same(run(batcher, calls, (0, 0, at), pipelines=pipelines), expected)


@pytest.mark.parametrize("at", [3, 5])
def test_a_cancelled_call_leaves_the_models_as_they_were(make_batcher, at):
    family = STATEFUL_FAMILIES["sdxl-pag"]()
    calls = [dict(call, num_inference_steps=6, pag_scale=3.0) for call in requests(family, 2)]
    calls[1]["pag_scale"] = 0.0
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]

    def cancel(scheduler, tasks, tick):
        if tick == at:
            scheduler.cancel(tasks[0])

    batcher = make_batcher(family.pipeline)
    tasks = run(batcher, calls, (0, 100), each_step=cancel)
    assert isinstance(tasks[0].error, StoppedError)
    assert same(tasks[1:], expected[1:])


def test_a_call_that_adds_a_hook_runs_alone_and_the_hook_is_removed(sdxl, make_batcher):
    def add_hook(pipe, step, timestep, tensors):
        if step == 0:
            pipe.unet.register_forward_hook(lambda module, args, output: (output[0] * 0.9,))
        return tensors

    unet = sdxl.pipeline.unet
    calls = [dict(call, num_inference_steps=4) for call in requests(sdxl, 3)]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    calls[1]["callback_on_step_end"] = add_hook
    expected[1] = stock(sdxl.pipeline, calls[1], 1)
    unet._forward_hooks.clear()
    tasks = run(make_batcher(sdxl.pipeline), calls)
    assert same(tasks, expected)
    assert not unet._forward_hooks


@pytest.mark.parametrize(
    "change",
    [
        lambda module: setattr(module, "processor", object()),
        lambda module: setattr(module, "added", 3),
        lambda module: delattr(module, "config"),
        lambda module: module.config.update(size=4),
        lambda module: module.layers.append(4),
        lambda module: module.register_forward_pre_hook(lambda *_: None),
        lambda module: module.positions.add_(1),
        lambda module: module.register_buffer("positions", torch.ones(3)),
    ],
)
def test_every_change_of_a_module_is_undone(change):
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    part = module[0]
    part.processor, part.config, part.layers = torch.nn.functional.relu, {"size": 3}, [1, 2]
    part.register_buffer("positions", torch.arange(3.0))
    before = {name: (value, copy.copy(value)) for name, value in vars(part).items()}

    def changing_call():
        change(part)
        raise StoppedError

    with pytest.raises(StoppedError), restored_after_errors([module]):
        changing_call()
    assert vars(part).keys() == before.keys()
    for name, (value, copied) in before.items():
        assert vars(part)[name] is value
        assert name == "_buffers" or value == copied
    assert part.positions.tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["hidream", "hunyuan-dit"])
def test_unusual_batch_dimensions_are_found_by_calls_of_different_row_counts(name, make_batcher, caplog):
    family = STATEFUL_FAMILIES[name]()
    calls = list(requests(family))
    assert family.guidances[3] == 1.0, "the last call has one row, and the others two"
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    batcher = make_batcher(family.pipeline)
    run(batcher, calls[3:])
    run(batcher, calls[:1])
    events = []
    assert same(run(batcher, calls, events=events), expected)
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) > 1
    assert not [record for record in caplog.records if "can't share" in record.getMessage()]


def test_calls_of_one_row_count_do_not_share_while_a_batch_dimension_is_ambiguous(make_batcher):
    family = STATEFUL_FAMILIES["hidream"]()
    calls = [dict(call, guidance_scale=5.0) for call in requests(family, 2)]  # as many rows as text layers
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    events = []
    assert same(run(make_batcher(family.pipeline), calls, events=events), expected)
    assert {event.fallback for event in events if event.stage.is_denoiser} - {""} == {"unknown batch dimension"}

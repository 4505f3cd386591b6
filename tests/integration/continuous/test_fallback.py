"""Calls that can't share a forward run alone, and give the same image."""

import pytest
import torch

from tests.integration.continuous.helpers import (
    TOLERANCE,
    difference,
    patched,
    requests,
    rows_of,
    run,
    settled,
    stock,
)

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def test_sizes_do_not_mix(sdxl, make_batcher):
    calls = [
        dict(call, height=side, width=side) for call, side in zip(requests(sdxl), (64, 128, 64, 128), strict=True)
    ]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    batcher = make_batcher(sdxl.pipeline)
    settled(batcher, sdxl)
    events = []
    for task, image in zip(run(batcher, calls, events=events), expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert {event.fallback for event in events} == {""}
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 2


def test_a_denoiser_whose_rows_depend_on_each_other_is_detected(sdxl, make_batcher, monkeypatch, caplog):
    def mixing(original, *args, **kwargs):
        output = original(*args, **kwargs)[0]
        return (output - output.mean(dim=0, keepdim=True),)

    patched(monkeypatch, sdxl.pipeline.unet, mixing)
    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    events = []
    tasks = run(make_batcher(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert "unequal" in {event.fallback for event in events}
    assert len([record for record in caplog.records if "unet" in record.getMessage()]) <= 2


def test_a_denoiser_that_rejects_batches_runs_call_by_call(sdxl, make_batcher, monkeypatch, caplog):
    def refusing(original, *args, **kwargs):
        if rows_of(args, kwargs) > 2:
            raise ValueError("two rows at most")
        return original(*args, **kwargs)

    patched(monkeypatch, sdxl.pipeline.unet, refusing)
    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    events = []
    tasks = run(make_batcher(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert "error" in {event.fallback for event in events}
    assert len([record for record in caplog.records if "unet" in record.getMessage()]) == 1


def test_a_denoiser_that_keeps_state_serves_one_request_at_a_time(sdxl, make_batcher, monkeypatch):
    unet = sdxl.pipeline.unet
    unet.kept = []

    def remembering(original, *args, **kwargs):
        output = original(*args, **kwargs)[0]
        if unet.kept and unet.kept[-1].shape == output.shape:
            output = 0.5 * (output + unet.kept[-1])
        unet.kept.append(output)
        return (output,)

    patched(monkeypatch, unet, remembering)
    calls = [dict(call, guidance_scale=5.0, num_inference_steps=4) for call in requests(sdxl, 3)]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]  # each feels the one before
    unet.kept.clear()
    for task, image in zip(run(make_batcher(sdxl.pipeline), calls), expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert len(unet.kept) == 12
    del unet.kept


def test_calls_with_unknown_argument_types_run_alone(sdxl, make_batcher, monkeypatch):
    class Odd:
        pass

    def told(original, *args, cross_attention_kwargs=None, **kwargs):
        return original(*args, **kwargs)

    patched(monkeypatch, sdxl.pipeline.unet, told)
    calls = list(requests(sdxl, 2))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    for call in calls:
        call["cross_attention_kwargs"] = {"odd": Odd()}
    events = []
    tasks = run(make_batcher(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    # Whoever is last has no company, and needs no reason to go alone.
    assert {event.fallback for event in events if event.stage.is_denoiser} - {""} == {"opaque argument"}


def test_a_pipeline_without_a_denoiser_runs_alone(make_batcher):
    class Whole:
        device = torch.device("cpu")

        def __init__(self):
            self.components = {}

        def set_progress_bar_config(self, **options):
            pass

        def __call__(self, prompt, generator):
            return ([torch.rand(3, generator=generator)],)

    (task,) = run(make_batcher(Whole()), [{"prompt": "a cat"}])
    assert torch.equal(task.result, torch.rand(3, generator=torch.Generator().manual_seed(0)))

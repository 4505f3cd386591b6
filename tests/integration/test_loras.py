"""LoRAs of requests: none is mixed with another, batches change nothing, and nothing leaks."""

import functools
import gc
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from imagegen_protocol.errors import InvalidRequestError
from imagegen_worker.backends.diffusers.adapters import Adapters
from imagegen_worker.backends.diffusers.batched_module import BatchedModule
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.engines.continuous.scheduler import BatchScheduler
from tests.equality import bits_or
from tests.families import FAMILIES
from tests.integration.continuous.helpers import TOLERANCE, difference, one_thread, requests, stock

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # from the stock pipelines
]
__all__ = ["one_thread"]

UNET = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "text_encoder.encoder.layers.0.self_attn.q_proj"


def write_lora(path, pipeline, seed, *places):
    """Write a LoRA of rank 2 for these layers."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for place in places:
        component, _, layer = place.partition(".")
        linear = getattr(pipeline, component).get_submodule(layer)
        weights[f"{place}.lora_A.weight"] = torch.randn(2, linear.in_features, generator=generator)
        weights[f"{place}.lora_B.weight"] = torch.randn(linear.out_features, 2, generator=generator)
    save_file(weights, path)


@pytest.fixture
def family():
    return FAMILIES["sdxl"]()


@pytest.fixture
def folder(tmp_path, family):
    for seed in range(10):
        places = (UNET, TEXT) if seed == 1 else (UNET,)
        write_lora(tmp_path / f"l{seed}.safetensors", family.pipeline, seed, *places)
    (tmp_path / "secret.bin").write_bytes(b"")
    return tmp_path


def alone(family, folder, call, seed, wanted):
    """Return the image of a stock pipeline with these LoRAs loaded by diffusers."""
    pipeline = FAMILIES["sdxl"]().pipeline
    for name, _ in wanted:
        pipeline.load_lora_weights(str(folder), weight_name=f"{name}.safetensors", adapter_name=name)
    if wanted:
        pipeline.set_adapters([name for name, _ in wanted], [scale for _, scale in wanted])
    return stock(pipeline, call, seed)


def run(family, adapters, calls, wanted, events=None):
    batcher = PipelineBatcher(family.pipeline, adapters=adapters)
    try:
        with batcher.session():
            scheduler = BatchScheduler(observe=(lambda event: None) if events is None else events.append)
            scheduler.start(functools.partial(batcher.generate, calls[0], 0))  # shows that it keeps no state
            while scheduler.step():
                pass
            tasks = []
            for seed, (call, loras) in enumerate(zip(calls, wanted, strict=True)):

                def work(call=call, seed=seed, loras=loras):
                    with adapters.reserved(loras):
                        return batcher.generate(call, seed)

                tasks.append(scheduler.start(work, adapters=loras or None))
            while scheduler.step():
                pass
        return tasks
    finally:
        batcher.close()


WANTED = [(("l0", 1.0),), (), (("l1", 0.7),), (("l0", 1.0),), (("l0", 0.3), ("l2", -1.0)), ()]


def test_each_request_has_its_own_loras_in_a_batch(family, folder):
    calls = [dict(call, num_inference_steps=4) for call in requests(family, len(WANTED))]
    expected = [alone(family, folder, call, seed, WANTED[seed]) for seed, call in enumerate(calls)]
    plain = [alone(family, folder, call, seed, ()) for seed, call in enumerate(calls)]
    events = []
    tasks = run(family, Adapters(family.pipeline, folder), calls, WANTED, events)
    for seed, (task, image) in enumerate(zip(tasks, expected, strict=True)):
        assert difference(task, image) <= TOLERANCE
        if WANTED[seed]:
            assert (task.result - plain[seed]).abs().max() > 100 * TOLERANCE, "the LoRA does something"
    groups = {tuple(task.adapters for task in event.tasks) for event in events if event.stage.is_denoiser}
    assert all(len(set(group)) == 1 for group in groups), "no forward mixes adapters"
    assert ((("l0", 1.0),),) * 2 in groups, "those of the same share"
    assert (None, None) in groups


def test_images_are_wrong_if_the_scales_of_loras_are_not_compared(family, folder, monkeypatch):
    """A planted fault: calls with the same LoRAs share whatever their scales, and get those of the first call."""

    def without_scales(module, task):
        return adapters_of(module, task) and tuple((name, 1.0) for name, _ in adapters_of(module, task))

    adapters_of = BatchedModule._adapters
    monkeypatch.setattr(BatchedModule, "_adapters", without_scales)
    wanted = [(("l0", 1.0),), (("l0", -1.0),)]
    calls = [dict(call, num_inference_steps=2) for call in requests(family, 2)]
    expected = alone(family, folder, calls[1], 1, wanted[1])
    tasks = run(family, Adapters(family.pipeline, folder), calls, wanted)
    assert difference(tasks[1], expected) > 100 * TOLERANCE


def test_requests_without_loras_are_unchanged(family, folder):
    call = next(requests(family))
    before = stock(family.pipeline, call, 0)
    adapters = Adapters(family.pipeline, folder)
    run(family, adapters, [call, call], [(("l0", 1.0),), (("l1", 1.0),)])
    (task,) = run(family, adapters, [call], [()])
    assert difference(task, before) <= bits_or(TOLERANCE)


def test_a_thousand_switches_leak_nothing(family, folder):
    adapters = Adapters(family.pipeline, folder, max_loaded=4)

    def switch(count):
        for number in range(count):
            adapters.activate(() if number % 7 == 6 else ((f"l{number % 10}", 1.0),))
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        modules = sum(1 for model in (family.pipeline.unet, family.pipeline.text_encoder) for _ in model.modules())
        return len(tensors), sum(tensor.nbytes for tensor in tensors), modules, len(adapters._slots)

    before = switch(70)
    assert before[3] == 4
    assert switch(210) == before


def test_the_least_recently_used_lora_is_unloaded_and_never_a_needed_one(family, folder):
    adapters = Adapters(family.pipeline, folder, max_loaded=3)
    for name in ("l0", "l1", "l2", "l0"):
        adapters.activate(((name, 1.0),))
    adapters.activate((("l1", 1.0), ("l3", 1.0)))
    assert [version.partition("\0")[0] for version in adapters._slots] == ["l0", "l1", "l3"]


def test_loras_in_use_stay_loaded_and_others_wait_for_room(family, folder, monkeypatch):
    calls = [dict(call, num_inference_steps=3) for call in requests(family, 4)]
    wanted = [((f"l{number}", 1.0),) for number in (0, 2, 3, 4)]
    expected = [alone(family, folder, call, seed, wanted[seed]) for seed, call in enumerate(calls)]
    adapters = Adapters(family.pipeline, folder, max_loaded=2)
    loaded, stock_load = [], adapters._load

    def load(version, keep):
        loaded.append(version.partition("\0")[0])
        stock_load(version, keep)

    monkeypatch.setattr(adapters, "_load", load)
    tasks = run(family, adapters, calls, wanted)
    assert loaded == ["l0", "l2", "l3", "l4"], "each is loaded once"
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert not +adapters._used


def test_a_request_that_ends_in_an_error_releases_its_loras(family, folder):
    adapters = Adapters(family.pipeline, folder, max_loaded=2)
    (folder / "rubbish.safetensors").write_bytes(b"rubbish")
    with pytest.raises(InvalidRequestError, match="rubbish"), adapters.reserved((("l0", 1.0), ("rubbish", 1.0))):
        pass
    with pytest.raises(ValueError, match="end"), adapters.reserved((("l0", 1.0),)):
        raise ValueError("end")
    assert not +adapters._used


def test_a_switch_touches_only_the_layers_of_its_loras(tmp_path, family):
    other = UNET.replace("to_q", "to_k")
    write_lora(tmp_path / "q.safetensors", family.pipeline, 0, UNET)
    write_lora(tmp_path / "k.safetensors", family.pipeline, 1, other)
    write_lora(tmp_path / "text.safetensors", family.pipeline, 2, TEXT)
    adapters = Adapters(family.pipeline, tmp_path)
    for name in ("q", "k", "text"):
        adapters.activate(((name, 1.0),))
    adapters.activate((("q", 1.0),))
    touched = []
    for layer in adapters._layers:
        for method in ("enable_adapters", "set_adapter", "set_scale"):
            setattr(layer, method, lambda *_, layer=layer: touched.append(layer))
    adapters.activate((("q", 0.5),))
    adapters.activate(())
    (own,) = adapters._layers_of[[*adapters._slots.values()][-1]]
    assert len(touched) == 2
    assert all(layer is own for layer in touched)
    assert [len(adapters._layers_of[slot]) for slot in adapters._slots.values()] == [1, 1, 1]


def test_loras_are_switched_only_when_they_change(family, folder, monkeypatch):
    adapters = Adapters(family.pipeline, folder)
    adapters.activate((("l0", 1.0),))
    monkeypatch.setattr(adapters, "load", None)
    adapters.activate((("l0", 1.0),))
    with pytest.raises(TypeError):
        adapters.activate((("l0", 0.5),))


@pytest.mark.parametrize("name", ["nobody", "secret", "secret.bin", "l0.safetensors"])
def test_an_unknown_lora_is_rejected_with_the_known_ones(family, folder, name):
    with pytest.raises(
        InvalidRequestError, match=rf"there is no '{name}' on this worker; there are: l0, l1, .*l9$"
    ):
        Adapters(family.pipeline, folder).load(((name, 1.0),))


def test_an_unusable_lora_file_fails_its_request_and_leaves_nothing_loaded(family, folder):
    call = next(requests(family))
    before = stock(family.pipeline, call, 0)
    (folder / "rubbish.safetensors").write_bytes(b"rubbish")
    save_file({"unet.nowhere.lora_A.weight": torch.zeros(2, 4)}, folder / "foreign.safetensors")
    save_file(
        {f"{UNET}.lora_A.weight": torch.zeros(2, 5), f"{UNET}.lora_B.weight": torch.zeros(5, 2)},
        folder / "shape.safetensors",
    )
    adapters = Adapters(family.pipeline, folder)
    for name in ("rubbish", "foreign", "shape"):
        with pytest.raises(InvalidRequestError, match=f"loras: '{name}' can't be used( with this model)?: ."):
            adapters.activate(((name, 1.0),))
        adapters.activate((("l0", 1.0),))
        assert {slot for layer in adapters._layers for slot in layer.lora_A} == {"lora0"}
    (task,) = run(family, adapters, [call], [()])
    assert difference(task, before) <= bits_or(TOLERANCE)
    (task,) = run(family, adapters, [call], [(("l0", 1.0),)])
    assert difference(task, alone(family, folder, call, 0, (("l0", 1.0),))) <= TOLERANCE


def test_a_lora_with_values_that_are_not_finite_and_a_dora_are_rejected(family, folder):
    keys = [f"{UNET}.lora_A.weight", f"{UNET}.lora_B.weight"]
    weights = {keys[0]: torch.zeros(2, 32), keys[1]: torch.zeros(32, 2)}
    save_file({**weights, keys[1]: torch.full((32, 2), torch.nan)}, folder / "nan.safetensors")
    save_file({**weights, f"{UNET}.dora_scale": torch.ones(32)}, folder / "dora.safetensors")
    adapters = Adapters(family.pipeline, folder)
    with pytest.raises(InvalidRequestError, match="'nan' can't be used: it has values that are not finite"):
        adapters.load((("nan", 1.0),))
    with pytest.raises(InvalidRequestError, match="'dora' can't be used: it is a DoRA"):
        adapters.load((("dora", 1.0),))


@pytest.mark.parametrize("places", [(UNET,), (UNET, TEXT)])
def test_a_lora_that_matches_in_part_has_a_warning(family, folder, places):
    write_lora(folder / "whole.safetensors", family.pipeline, 3, *places)
    adapters = Adapters(family.pipeline, folder)
    adapters.load((("whole", 1.0),))
    assert adapters.warnings((("whole", 1.0),)) == ()
    weights = load_file(folder / "whole.safetensors")
    others = {
        key.replace("down_blocks.1", "down_blocks.9"): value.clone()
        for key, value in weights.items()
        if key.startswith("unet")
    }
    save_file({**weights, **others}, folder / "part.safetensors")
    adapters.load((("part", 1.0), ("whole", 1.0)))
    count = len(places)
    expected = f"loras: 'part' has {count + 1} layers, of which {count} match this model"
    assert adapters.warnings((("whole", 1.0), ("part", 0.5))) == (expected,)


def test_a_replaced_file_is_another_lora(family, folder):
    adapters = Adapters(family.pipeline, folder)
    before = adapters.load((("l0", 1.0),))
    assert adapters.load((("l0", 1.0),)) == before
    write_lora(folder / "l0.safetensors", family.pipeline, 99, UNET)
    os.utime(folder / "l0.safetensors", ns=(1, 1))  # the clock of the file system may be coarse
    after = adapters.load((("l0", 1.0),))
    assert after != before
    layer = family.pipeline.unet.get_submodule(UNET.removeprefix("unet."))
    own, new = (layer.lora_A[adapters._slots[versions[0][0]]].weight for versions in (before, after))
    assert not torch.equal(own, new)
    adapters.activate(before)
    assert list(layer.active_adapters) == [adapters._slots[before[0][0]]], "a running request keeps its weights"
    fresh = Adapters(FAMILIES["sdxl"]().pipeline, folder)
    with pytest.raises(InvalidRequestError, match="the file of 'l0' was replaced meanwhile"):
        fresh.activate(before)


SCALES = (0.5, None, 0.0, 2.0, None)


@pytest.mark.parametrize("name", ["sd", "sdxl"])
@pytest.mark.parametrize("arrivals", ["together", "alone"])
def test_a_call_scales_its_loras_in_the_text_encoder(name, arrivals, tmp_path):
    family = FAMILIES[name]()
    write_lora(tmp_path / "l0.safetensors", family.pipeline, 0, UNET, TEXT)
    write_lora(tmp_path / "l1.safetensors", family.pipeline, 1, TEXT)
    call = dict(next(requests(family)), num_inference_steps=2)  # one prompt: cached unless the scale is in the key
    calls = [
        dict(call) if scale is None else dict(call, cross_attention_kwargs={"scale": scale}) for scale in SCALES
    ]
    wanted = [(("l0", 0.8),)] * 4 + [(("l1", 1.0),)]
    expected = []
    for seed, request in enumerate(calls):
        pipeline = FAMILIES[name]().pipeline
        ((lora, scale),) = wanted[seed]
        pipeline.load_lora_weights(str(tmp_path), weight_name=f"{lora}.safetensors", adapter_name=lora)
        pipeline.set_adapters([lora], [scale])
        expected.append(stock(pipeline, request, seed))
    adapters = Adapters(family.pipeline, tmp_path)
    order = range(len(calls))
    batches = [order] if arrivals == "together" else [[at] for at in (0, 1, 2, 1, 3, 4, 0)]
    for batch in batches:
        # The seed of a call is its index, so calls alone keep theirs behind unrelated ones.
        seeds = list(batch) if arrivals == "together" else [*range(batch[0]), batch[0]]
        tasks = run(family, adapters, [calls[at] for at in seeds], [wanted[at] for at in seeds])
        for at in batch:
            assert difference(tasks[seeds.index(at)], expected[at]) <= TOLERANCE

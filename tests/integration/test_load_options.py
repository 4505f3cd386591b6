"""How a model is put on its device: each option reaches the diffusers or torch call of the same meaning."""

import pytest
import torch

from imagegen_worker.backends import StartError
from imagegen_worker.backends.diffusers import StepwiseDiffusers
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.engines.continuous.scheduler import BatchScheduler

CONFIG = WorkerConfig()


def load(**options):
    return LoadedPipeline(
        CONFIG.model_source.location, CONFIG.model_name, LoadOptions(device="cpu", threads=1, **options)
    ).pipeline


def test_the_dtype_is_that_of_every_part():
    pipeline = load(dtype="bfloat16")
    assert {part.dtype for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder)} == {torch.bfloat16}
    assert load().unet.dtype == torch.float32


def test_tiling_is_turned_on():
    assert load(vae_tiling=True).vae.use_tiling
    assert not load().vae.use_tiling


def test_an_attention_backend_is_set_or_refused_by_name(monkeypatch):
    from diffusers import ModelMixin

    asked = []
    monkeypatch.setattr(ModelMixin, "set_attention_backend", lambda self, name: asked.append(name))
    load(attention_backend="native")
    assert asked == ["native"]
    monkeypatch.undo()
    with pytest.raises(StartError, match="no_such_backend"):
        load(attention_backend="no_such_backend")


def test_a_lora_folder_is_ignored_by_a_model_that_takes_no_loras(tmp_path, monkeypatch, caplog):
    monkeypatch.delattr("diffusers.StableDiffusionPipeline.load_lora_weights", raising=False)
    monkeypatch.delattr("diffusers.loaders.StableDiffusionLoraLoaderMixin.load_lora_weights")
    options = LoadOptions(device="cpu", threads=1, lora_folder=tmp_path)
    loaded = LoadedPipeline(CONFIG.model_source.location, CONFIG.model_name, options)
    assert (loaded.adapters, loaded.model.takes_loras) == (None, False)
    assert "--lora-folder ignored" in caplog.text


def test_offloading_needs_an_accelerator():
    with pytest.raises(StartError, match="needs a GPU"):
        load(cpu_offload=True)


def test_the_denoiser_is_compiled_before_it_is_wrapped(monkeypatch):
    """Compiling itself takes minutes; what is compiled, and that the engine draws with it, is seen without."""
    compiled = []

    def compile_module(module, **options):
        compiled.append((type(module).__name__, options))
        return module

    monkeypatch.setattr(torch, "compile", compile_module)
    options = LoadOptions(device="cpu", threads=1, compile=True)
    backend = StepwiseDiffusers(CONFIG.model_source.location, CONFIG.model_name, options, max_batch_size=3)
    tried = []
    stock_start = BatchScheduler.start
    monkeypatch.setattr(
        BatchScheduler, "start", lambda self, *a, **k: tried.append(self) or stock_start(self, *a, **k)
    )
    warm = backend.warm_up()
    backend.close()
    assert compiled == [("UNet2DConditionModel", {"dynamic": True})]
    assert warm.models[0].name == "builtin:shapes"
    # Two first images. Trials of two images alone, then together: two for the first task, one for each other task;
    # for each task once without the first row. Then two images of the first task, three times.
    assert len(tried) == 2 + 4 * (2 + 1) + 3 + 2 + 2 + 2, "every number of images that can run together was tried"

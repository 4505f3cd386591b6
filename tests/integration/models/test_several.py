"""Several models on one device in both engines: each generates its own images, and unloaded ones are freed."""

import shutil
import types
import weakref

import pytest
import torch

from imagegen_worker.backends import completed
from imagegen_worker.backends.diffusers import DiffusersBackend, StepwiseDiffusers
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.loading import weigh_model
from imagegen_worker.backends.factory import LoadedEngine
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.core import events as ev
from imagegen_worker.core.model import ResolvedRequest
from tests.equality import same_bits
from tests.integration.models.recent import PIPELINES
from tests.integration.models.worker import Script, stock_image

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
GUIDANCES = {"sd": 7.5, "flux": 3.5, "sd3": 7.0, "broken": 7.5}
"""The stock defaults."""
OPTIONS = LoadOptions(device="cpu", threads=1)
BATCHINGS = pytest.mark.parametrize("batching", ["continuous", "static"])


def job(number, model, *, prompt="a cat", steps=2, guidance=None):
    request = ResolvedRequest(
        model=model,
        prompt=prompt,
        negative_prompt=None,
        seeds=(3,),
        num_inference_steps=steps,
        guidance_scale=GUIDANCES[model] if guidance is None else guidance,
        width=64,
        height=64,
    )
    return ev.Job(number, request, 0.0)


class Worker:
    """A device with its engine, run on commands until nothing is left to do."""

    def __init__(self, folders, **settings):
        defaults = {"device": "cpu", "max_batch_size": 4, "torch_threads": 1}
        self.config = WorkerConfig(models=tuple(map(str, folders)), **{**defaults, **settings})
        self.images = {}
        encoder = types.SimpleNamespace(
            submit=lambda raw: self.images.__setitem__(raw.number, completed(raw.images[0]))
        )
        self.device = LoadedEngine(self.config, encoder)

    def run(self, *commands):
        mailbox = Script(commands)
        self.device.engine.run(mailbox)
        mailbox.close()
        return mailbox.posted


@pytest.fixture
def alive(monkeypatch):
    """Return a function that returns the names of the models whose denoisers are not freed."""
    weights = {}
    load = LoadedPipeline.__init__

    def watched(self, place, name, options):
        load(self, place, name, options)
        denoiser = getattr(self.pipeline, "unet", None) or self.pipeline.transformer
        weights.setdefault(name, []).append(weakref.ref(denoiser))

    monkeypatch.setattr(LoadedPipeline, "__init__", watched)
    return lambda: {name for name, refs in weights.items() for ref in refs if ref() is not None}


def stock(family):
    pipeline = PIPELINES[family]()
    pipeline.set_progress_bar_config(disable=True)
    return stock_image(pipeline)


@BATCHINGS
def test_each_model_generates_its_own_images_with_memory_for_two(saved, alive, batching):
    folders = [saved(family) for family in ("sd", "flux", "sd3")]
    sizes = [weigh_model(folder, "m", OPTIONS) for folder in folders]
    worker = Worker(folders, batching=batching, model_memory=sum(sizes) - 1, model_patience=0.0)
    assert worker.device.ready.served == ("sd", "flux", "sd3")
    assert [model.name for model in worker.device.ready.models] == ["sd"]
    order = ("sd", "flux", "sd3", "sd", "flux")
    jobs = [job(number, model) for number, model in enumerate(order)]
    events = worker.run(*jobs[:3], *[None] * 300, *jobs[3:])
    for number, model in enumerate(order):
        assert same_bits(worker.images[number], stock(model)), model
    loads = [event.model.name for event in events if isinstance(event, ev.ModelLoaded)]
    assert loads[:3] == ["flux", "sd3", "sd"], "the first was freed for the third, and comes back"
    assert all(len(event.loaded) <= 2 for event in events if isinstance(event, ev.ModelLoaded))
    warm = next(event.loaded for event in reversed(events) if isinstance(event, ev.ModelLoaded))
    assert alive() == set(warm), "what was freed is gone, whatever still remembers its forwards"
    worker.device.close()
    assert alive() == set()


def test_a_model_is_loaded_between_steps_and_images_of_both_run_together(saved):
    worker = Worker([saved("sd"), saved("flux")], model_memory=2**30)
    events = worker.run(job(1, "sd", steps=30), job(2, "flux", steps=8))
    told = [type(event).__name__ + str(getattr(event, "numbers", "")) for event in events]
    assert told.index("ModelLoaded") < told.index("Started(2,)")
    ends = {number: max(at for at, name in enumerate(told) if name == f"Stepped({number},)") for number in (1, 2)}
    assert told.index("Started(2,)") < ends[1], "the first one was not over"
    assert {number: image.size for number, image in worker.images.items()} == {1: (64, 64), 2: (64, 64)}
    worker.device.close()


@BATCHINGS
def test_a_model_that_cannot_be_loaded_does_not_affect_others(saved, tmp_path, batching):
    broken = shutil.copytree(saved("sd"), tmp_path / "broken")
    (broken / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    worker = Worker([saved("sd"), broken], batching=batching)
    events = worker.run(job(1, "broken"), ev.LoadModel("broken"), job(2, "sd"))
    failed = [event for event in events if isinstance(event, ev.ModelLoadFailed)]
    assert "the model broken cannot be loaded" in failed[0].message
    assert "unet: the weights (.safetensors) are missing" in failed[0].message
    assert failed[0].loaded == ("sd",)
    assert set(worker.images) == {2}
    worker.device.close()


@BATCHINGS
def test_preload_loads_all_models_that_fit(saved, batching):
    folders = [saved(family) for family in ("sd", "flux", "sd3")]
    sizes = [weigh_model(folder, "m", OPTIONS) for folder in folders]
    worker = Worker(folders, batching=batching, model_memory=sizes[0] + sizes[2], preload=True)
    fitting = ["sd", "flux", "sd3"] if sizes[1] == 0 else ["sd", "flux"] if sizes[1] <= sizes[2] else ["sd", "sd3"]
    assert [model.name for model in worker.device.ready.models] == fitting
    worker.device.close()


@pytest.mark.parametrize("family", ["sd", "sdxl", "flux", "z-image"])
def test_the_size_of_a_model_is_known_before_it_is_loaded(saved, family):
    told = weigh_model(saved(family), "m", OPTIONS)
    loaded = LoadedPipeline(saved(family), "m", OPTIONS)
    parts = [part for part in loaded.pipeline.components.values() if isinstance(part, torch.nn.Module)]
    taken = sum(weight.nbytes for part in parts for weight in part.state_dict().values())
    assert told == pytest.approx(taken, rel=0.05)
    loaded.close()


@pytest.mark.parametrize("kind", ["static", "continuous"])
def test_a_closed_backend_keeps_no_weights(saved, alive, kind):
    remembered = []
    if kind == "static":
        backend = DiffusersBackend(saved("sd"), "sd", OPTIONS)
    else:
        backend = StepwiseDiffusers(saved("sd"), "sd", OPTIONS, max_batch_size=2)
    assert backend.load().name == "sd"
    if kind == "continuous":
        remembered += backend._pipeline_batcher._modules  # as a scheduler does for those short of memory
    assert alive() == {"sd"}
    backend.close()
    assert alive() == set()

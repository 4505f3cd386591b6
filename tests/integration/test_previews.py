"""Previews of latents: their content, pipelines without them, and their delivery to a client."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from imagegen_client import AsyncClient, Client
from imagegen_worker.backends import Row, completed
from imagegen_worker.backends.diffusers import StepwiseDiffusers
from imagegen_worker.backends.diffusers.pipeline_batcher import PipelineBatcher
from imagegen_worker.backends.diffusers.previews import LatentMap, LatentPreview, fit_latent_preview
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.engines.continuous.scheduler import BatchScheduler
from tests.equality import same_bits
from tests.families import FAMILIES
from tests.integration.client.peers import PNG, RawWorker
from tests.integration.continuous.helpers import one_thread

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
__all__ = ["one_thread"]
CLOSE = 45.0
"""Mean difference, of 255, below which a preview shows the picture; unlike pictures differ by far more."""


@pytest.fixture(scope="module")
def backend():
    config = WorkerConfig()
    options = LoadOptions(device="cpu", threads=1)
    backend = StepwiseDiffusers(config.model_source.location, config.model_name, options, max_batch_size=2)
    backend.model = backend.warm_up().models[0]
    yield backend
    backend.close()


def draw(backend, prompt, *, preview=True, width=64):
    """Return the image, and a preview for each step."""
    model = backend.model
    request = ResolvedRequest(
        model=model.name,
        prompt=prompt,
        negative_prompt=None,
        seeds=(1,),
        num_inference_steps=10,
        guidance_scale=model.guidance_scale,
        width=width,
        height=64,
    )
    pictures = []

    def on_step(step, steps, sketches=()):
        pictures.extend(sketch() for sketch in sketches)

    with backend.session():
        scheduler = BatchScheduler(timer=backend.timer)
        task = scheduler.start(lambda: backend.generate([Row(request, 1, preview)], on_step))
        while scheduler.step():
            pass
    if task.error is not None:
        raise task.error
    return completed(task.result[0]), pictures


def apart(one, other):
    size = one.size
    return np.abs(np.asarray(one, dtype=float) - np.asarray(other.resize(size, 4), dtype=float)).mean()


def test_the_last_preview_shows_the_image_and_no_other(backend):
    prompts = ("a red circle on a blue background", "a yellow star on a purple background")
    drawn = [draw(backend, prompt) for prompt in prompts]
    for image, pictures in drawn:
        assert len(pictures) == 10
        assert pictures[-1].size == (8, 8)
        assert apart(pictures[-1], image) < CLOSE
        assert apart(pictures[-1], image) == min(apart(pictures[-1], other) for other, _ in drawn)


def test_a_preview_changes_no_pixel_and_is_made_only_on_request(backend):
    image, _ = draw(backend, "a red circle")
    without, pictures = draw(backend, "a red circle", preview=False)
    assert pictures == []
    assert same_bits(image, without)


def test_other_sizes_have_previews(backend):
    _, pictures = draw(backend, "a red circle", width=128)
    assert pictures[-1].size == (16, 8)


def test_a_large_preview_is_downscaled():
    latent_preview = LatentPreview(LatentMap(torch.eye(4, 3), scale=8))
    latents = torch.zeros(3, 100, 150)
    latents[0] = 1.0
    picture = latent_preview.preview(latents, (1200, 800))()
    assert picture.size == (50, 34)
    assert picture.getpixel((49, 33)) == (255, 0, 0)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (64, 3), (17, 3), (4, 8, 8), (3, 8, 16), (3, 4, 4)])
def test_latents_of_an_unknown_layout_have_no_preview(shape):
    latent_preview = LatentPreview(LatentMap(torch.eye(4, 3), scale=8), LatentMap(torch.eye(4, 3), scale=16))
    assert latent_preview.preview(torch.zeros(16, 3), (64, 64)) is not None
    assert latent_preview.preview(torch.zeros(shape), (64, 64)) is None
    assert LatentPreview(LatentMap(torch.eye(4, 3), scale=8)).preview(torch.zeros(16, 3), (64, 64)) is None


@pytest.mark.parametrize("name", ["flux", "flux2-klein", "sdxl"])
def test_latents_that_do_not_explain_the_colours_have_no_preview(name):
    # Random weights: no linear map explains their decoder.
    assert fit_latent_preview(FAMILIES[name]().pipeline) is None


# ---- other ways to lay latents out and to normalise them ------------------------------------------------------


class Mean(torch.nn.Module):
    """An autoencoder whose four channels are colours, turned, and one of nothing: a linear map explains it."""

    def __init__(self, *, frames=False, bn=False, **config):
        super().__init__()
        self.config = config
        self.frames = frames
        self.turn = torch.nn.Parameter(torch.linalg.qr(torch.randn(4, 4, generator=seeded()))[0])
        self.kernel = torch.nn.Parameter(torch.zeros(1, 1, *([1] * (3 if frames else 2))))
        if bn:
            self.bn = torch.nn.BatchNorm2d(16)
            self.bn.running_mean[:] = torch.randn(16, generator=seeded())
            self.bn.running_var[:] = torch.rand(16, generator=seeded()) + 0.5
            self.config["batch_norm_eps"] = 1e-4

    dtype = torch.float32
    device = torch.device("cpu")

    def encode(self, pictures):
        assert pictures.ndim == (5 if self.frames else 4)
        small = torch.nn.functional.avg_pool2d(pictures[:, :, 0] if self.frames else pictures, 8)
        latents = torch.einsum("dc,bchw->bdhw", self.turn, torch.cat([small, small[:, :1] * 0], dim=1))
        latents = latents[:, :, None] if self.frames else latents
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, latents, return_dict):
        flat = latents[:, :, 0] if self.frames else latents
        colours = torch.einsum("dc,bdhw->bchw", self.turn, flat)[:, :3]
        large = colours.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
        return (large[:, :, None] if self.frames else large,)


def seeded():
    return torch.Generator().manual_seed(3)


PICTURE = torch.rand(1, 3, 16, 32, generator=seeded()).repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
SIZE = (256, 128)


def encoded(vae):
    """The picture as the decoder takes it, without frames."""
    latents = vae.encode(PICTURE[:, :, None] * 2 - 1 if vae.frames else PICTURE * 2 - 1).latent_dist.mode()
    return latents[:, :, 0] if vae.frames else latents


def assert_it_is_the_picture(sketch):
    picture = sketch()
    expected = torch.nn.functional.avg_pool2d(PICTURE, SIZE[0] // picture.size[0])[0].movedim(0, -1)
    assert np.abs(np.asarray(picture) / 255 - expected.numpy()).max() < 0.02


MEAN, STD = [0.5, -1.0, 0.2, 0.0], [2.0, 0.7, 1.0, 3.0]
COLUMN = (1, 4, 1, 1)


@pytest.mark.parametrize(
    ("config", "normal"),
    [
        ({"scaling_factor": 0.2}, lambda x: x * 0.2),
        ({"scaling_factor": 1.5, "shift_factor": 0.3}, lambda x: (x - 0.3) * 1.5),
        (
            {"latents_mean": MEAN, "latents_std": STD},
            lambda x: (x - torch.tensor(MEAN).view(COLUMN)) / torch.tensor(STD).view(COLUMN),
        ),
        (
            {"latents_mean": MEAN, "latents_std": STD, "scaling_factor": 0.2},
            lambda x: (x - torch.tensor(MEAN).view(COLUMN)) / torch.tensor(STD).view(COLUMN) * 0.2,
        ),
    ],
    ids=["scaled", "shifted", "by channel", "by channel and scaled"],
)
@pytest.mark.parametrize("frames", [False, True])
def test_normalised_latents_have_previews(config, normal, frames):
    vae = Mean(frames=frames, **config)
    latents = normal(encoded(vae))
    bare = SimpleNamespace(vae=vae, device=torch.device("cpu"))
    assert_it_is_the_picture(fit_latent_preview(bare).preview(latents[0], SIZE))
    pipeline = FAMILIES["flux"]().pipeline  # packs by itself
    pipeline.vae = vae
    packed = pipeline._pack_latents(latents, 1, 4, 16, 32)
    assert_it_is_the_picture(fit_latent_preview(pipeline).preview(packed[0], SIZE))


def test_latents_normalised_by_the_channels_of_a_patch_have_previews():
    pipeline = FAMILIES["flux2-klein"]().pipeline
    vae = pipeline.vae = Mean(bn=True)
    patches = pipeline._patchify_latents(encoded(vae))
    packed = pipeline._pack_latents(vae.bn.eval()(patches))
    assert_it_is_the_picture(fit_latent_preview(pipeline).preview(packed[0], SIZE))


def test_latents_of_unknown_normalisation_have_no_preview():
    assert (
        fit_latent_preview(SimpleNamespace(vae=Mean(), device=torch.device("cpu"))).preview(
            torch.zeros(4, 16, 32), SIZE
        )
        is None
    )


def test_a_pipeline_that_packs_in_another_order_has_no_previews():
    pipeline = FAMILIES["flux"]().pipeline
    pipeline.vae = Mean(scaling_factor=1.0)
    pack = pipeline._pack_latents
    pipeline._pack_latents = lambda *given: pack(*given).flip(-1)
    assert fit_latent_preview(pipeline).preview(torch.zeros(8 * 16, 16), SIZE) is None


@pytest.mark.parametrize(
    ("name", "shape"),
    [("sdxl", (1, 4, 8, 8)), ("pixart-sigma", (1, 4, 8, 8)), ("flux", (1, 16, 16)), ("flux2-klein", (1, 16, 16))],
)
def test_previews_get_the_latents_of_each_step(name, shape):
    family = FAMILIES[name]()  # PixArt has no callback: its scheduler tells
    batcher = PipelineBatcher(family.pipeline)
    seen = []
    arguments = dict(family.arguments, prompt="a cat", num_inference_steps=4)

    def sketches(latents):
        seen.append(tuple(latents.shape))
        return ()

    with batcher.session():
        scheduler = BatchScheduler()
        scheduler.start(lambda: batcher.generate(arguments, 0, lambda *told: None, previews=sketches))
        while scheduler.step():
            pass
    batcher.close()
    assert seen == [shape] * 4


# ---- over sockets ------------------------------------------------------------------------------------------


class Painter(RawWorker):
    """A worker that sends a preview with each progress message, requested or not."""

    def _progress(self, work, step):
        header = {"type": "progress", "request_id": work["request_id"], "step": step, "steps": 2}
        self._send(header, PNG)


@pytest.fixture
def painted(start_broker):
    broker = start_broker()
    painter = Painter(broker.backend_endpoint)
    yield broker.frontend_endpoint
    painter.stop()


def test_previews_reach_a_client_that_requests_them(painted):
    with Client(painted) as client:
        signs = list(client.submit("x", preview=True).progress())
        assert [sign.preview for sign in signs if sign.step] == [PNG, PNG]
        assert signs[-1].preview_image.size == (4, 2)
        assert [sign.preview for sign in client.submit("x", progress=True).progress()].count(None) == 2
        seen = []
        client.generate("x", on_progress=seen.append, preview=True)
        assert [sign.preview for sign in seen] == [PNG, PNG]


def test_a_job_without_a_subscriber_is_answered(painted):
    with Client(painted) as client:
        jobs = [client.submit("x", preview=True) for _ in range(50)]
        assert all(job.result(60).encoded == [PNG] for job in jobs)


def test_previews_reach_an_async_client(painted):
    import asyncio

    async def follow():
        async with AsyncClient(painted) as client:
            signs = [sign async for sign in client.submit("x", preview=True).progress()]
            seen = []
            await client.generate("x", on_progress=seen.append, preview=True)
            return signs, seen

    for signs in asyncio.run(follow()):
        assert [sign.preview for sign in signs if sign.state == "running"] == [PNG, PNG]

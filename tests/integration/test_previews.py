"""Pictures of latents: what they look like, where there are none, and their way over real sockets to a client."""

import numpy as np
import pytest
import torch

from imagegen_client import AsyncClient, Client
from imagegen_worker.backends import Row
from imagegen_worker.backends.diffusers import StepwiseDiffusers
from imagegen_worker.backends.diffusers.rendezvous import Rendezvous
from imagegen_worker.backends.diffusers.sketching import Sketcher, make_sketcher
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.continuous.hub import Hub
from imagegen_worker.core.model import ResolvedRequest
from tests.families import FAMILIES
from tests.integration.client.peers import PNG, RawWorker

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
CLOSE = 45.0
"""Mean difference, of 255, below which a preview shows the picture; unlike pictures differ by far more."""


@pytest.fixture(scope="module")
def backend():
    config = WorkerConfig()
    options = LoadOptions(device="cpu", threads=1)
    backend = StepwiseDiffusers(config.model_source.place, config.model_name, options, max_batch_size=2)
    backend.model = backend.warm_up().models[0]
    yield backend
    backend.close()


def draw(backend, prompt, *, preview=True, width=64):
    """The image, and a picture for each step."""
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
        hub = Hub(timer=backend.timer)
        task = hub.start(lambda: backend.make([Row(request, 1, preview)], on_step))
        while hub.step():
            pass
    if task.error is not None:
        raise task.error
    return task.result[0], pictures


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


def test_a_preview_changes_no_pixel_and_is_made_only_on_demand(backend):
    image, _ = draw(backend, "a red circle")
    without, pictures = draw(backend, "a red circle", preview=False)
    assert pictures == []
    assert image.tobytes() == without.tobytes()


def test_other_sizes_have_their_own(backend):
    _, pictures = draw(backend, "a red circle", width=128)
    assert pictures[-1].size == (16, 8)


def test_a_large_one_is_made_smaller():
    sketcher = Sketcher(torch.eye(4, 3), scale=8)
    latents = torch.zeros(3, 100, 150)
    latents[0] = 1.0
    picture = sketcher.sketch(latents, (1200, 800))()
    assert picture.size == (50, 34)
    assert picture.getpixel((49, 33)) == (255, 0, 0)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (64, 3), (4, 8, 8), (3, 8, 16), (3, 4, 4)])
def test_latents_of_another_kind_have_none(shape):
    assert Sketcher(torch.eye(4, 3), scale=8).sketch(torch.zeros(shape), (64, 64)) is None


@pytest.mark.parametrize("name", ["flux", "flux2-klein", "sdxl"])
def test_where_the_latents_do_not_tell_the_colours_there_is_none(name):
    # Random weights: no linear map explains their decoder. FLUX.2 packs and normalises besides.
    assert make_sketcher(FAMILIES[name]().pipeline) is None


@pytest.mark.parametrize(("name", "asked"), [("sdxl", 4), ("pixart-sigma", 4)])
def test_the_latents_are_those_of_each_step(name, asked):
    family = FAMILIES[name]()  # PixArt has no callback: its scheduler tells
    rendezvous = Rendezvous(family.pipeline)
    seen = []
    arguments = dict(family.arguments, prompt="a cat", num_inference_steps=4)

    def sketches(latents):
        seen.append(tuple(latents.shape))
        return ()

    with rendezvous.session():
        hub = Hub()
        hub.start(lambda: rendezvous.generate(arguments, 0, lambda *told: None, sketches=sketches))
        while hub.step():
            pass
    rendezvous.close()
    assert seen == [(1, 4, 8, 8)] * asked


# ---- over sockets ------------------------------------------------------------------------------------------


class Painter(RawWorker):
    """A worker that sends a picture behind each sign of progress, asked for or not."""

    def _progress(self, work, step):
        header = {"type": "progress", "request_id": work["request_id"], "step": step, "steps": 2}
        self._send(header, PNG)


@pytest.fixture
def painted(start_broker):
    broker = start_broker()
    painter = Painter(broker.backend_endpoint)
    yield broker.frontend_endpoint
    painter.stop()


def test_previews_reach_a_client_that_asks_for_them(painted):
    with Client(painted) as client:
        signs = list(client.submit("x", preview=True).progress())
        assert [sign.preview for sign in signs if sign.step] == [PNG, PNG]
        assert signs[-1].preview_image.size == (4, 2)
        assert [sign.preview for sign in client.submit("x", progress=True).progress()].count(None) == 2
        seen = []
        client.generate("x", on_progress=seen.append, preview=True)
        assert [sign.preview for sign in seen] == [PNG, PNG]


def test_a_job_that_nobody_follows_is_answered_as_any_other(painted):
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

"""Running out of memory loses no image and keeps no memory, at whatever stage."""

import contextlib
import gc
import logging
import weakref

import pytest
import torch

from imagegen_worker.backends import DeviceMemoryError
from imagegen_worker.backends.diffusers.errors import translated_errors
from imagegen_worker.core import events as ev
from tests.equality import same_image
from tests.families import FAMILIES
from tests.integration.continuous.helpers import (
    PROMPTS,
    TOLERANCE,
    job,
    patched,
    requests,
    rows_of,
    run,
    serve,
    settled,
    stock,
)
from tests.integration.models import test_several as several
from tests.integration.models.worker import make_images
from tests.rehearsal.card import move_to_card

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def sdxl():
    return FAMILIES["sdxl"]()


@contextlib.contextmanager
def no_collection():
    """Leave garbage where it is: what is released in the block had no references."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def same(tasks, expected):
    for task, image in zip(tasks, expected, strict=True):
        assert task.error is None
        assert (task.result.cpu() - image).abs().max().item() <= TOLERANCE
    return True


@pytest.mark.parametrize("fits", [1, 2, 4])
@pytest.mark.parametrize(("part", "method"), [("unet", "forward"), ("vae", "decode"), ("text_encoder", "forward")])
def test_no_activation_is_alive_when_a_forward_is_repeated(sdxl, make_batcher, monkeypatch, part, method, fits):
    failed, alive = [], []

    def forward(original, *args, **kwargs):
        alive.extend(each() is not None for each in failed)
        if rows_of(args, kwargs) <= fits:
            return original(*args, **kwargs)
        activation = torch.zeros(3)
        failed.append(weakref.ref(activation))
        with contextlib.ExitStack() as stack:  # refers to the error, as hooks and libraries do
            stack.callback(len, [activation])
            try:
                raise ValueError("a library's own")
            except ValueError:
                raise torch.OutOfMemoryError("too big")  # noqa: B904 - has the other one as its context

    calls = [dict(call, num_inference_steps=3, guidance_scale=5.0) for call in requests(sdxl)]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, getattr(sdxl.pipeline, part), forward, method)
    monkeypatch.setattr("imagegen_worker.backends.diffusers.device_memory.gc.collect", lambda: 0)
    batcher = make_batcher(sdxl.pipeline)
    if fits > 1:
        settled(batcher, sdxl)
    failed.clear()
    with no_collection():
        tasks = run(batcher, calls)
    if part != "unet" or fits > 1:
        same(tasks, expected)
    # The first calls of each kind encode their prompts one after the other.
    assert failed or fits == 4 or part == "text_encoder"
    assert not any(alive)
    assert not any(each() is not None for each in failed)


def jobs(images=4):
    return [
        job(number, steps=(4, 6, 5, 3)[number % 4], prompt=PROMPTS[number % 4], seeds=(number,))
        for number in range(images)
    ]


def served(batcher, family):
    """Return the events of an engine that gets all jobs at once, and the images."""
    events, images = serve(batcher, family.arguments, jobs(), shares_calls=False)
    assert len(images) == len(jobs()), [event for event in events if isinstance(event, ev.Failed)]
    gc.collect()
    return events, [images[number][0] for number in sorted(images)]


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux", "z-image"])
def test_all_images_are_generated_within_less_memory_than_all_together_take(
    name, share, card, make_batcher, caplog
):
    family = FAMILIES[name]()
    move_to_card(family.pipeline)
    batcher = make_batcher(family.pipeline, prompt_cache_bytes=0)
    settled(batcher, family)
    _, expected = served(batcher, family)
    used = card.memory.used
    card.memory.reset_peak()
    serve(batcher, family.arguments, jobs(1))
    one = card.memory.peak
    card.memory.reset_peak()
    served(batcher, family)
    together = card.memory.peak
    assert together > one
    card.memory.limit = int(one + share * (together - one))
    events, images = served(batcher, family)
    for image, other in zip(images, expected, strict=True):
        assert same_image(image, other)
    assert any(isinstance(event, ev.CallFailed) and event.split for event in events)
    assert not [record for record in caplog.records if "can't share" in record.getMessage()]
    assert card.memory.used == used


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
def test_a_translated_error_keeps_nothing_alive(error):
    def forward():
        activation = torch.zeros(3)
        found.append(weakref.ref(activation))
        raise error("CUDA out of memory")

    found = []
    with no_collection():
        with pytest.raises(DeviceMemoryError, match="CUDA out of memory"), translated_errors():
            forward()
        assert found[0]() is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
        "cuFFT error: CUFFT_ALLOC_FAILED",
        "FIND was unable to find an engine to execute this computation",
        "Triton Error [CUDA]: out of memory",
        "HIP out of memory. Tried to allocate 2.00 GiB",
        "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 12 bytes",
    ],
)
def test_every_report_of_missing_memory_counts(text):
    for kind in (RuntimeError, torch.AcceleratorError):
        with pytest.raises(DeviceMemoryError), translated_errors():
            raise kind(text)


def test_a_decoder_that_fits_no_row_decodes_in_tiles(card, make_batcher, caplog):
    family = FAMILIES["sdxl"]()
    calls = [dict(call, height=256, width=256, num_inference_steps=2) for call in requests(family, 2)]
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    move_to_card(family.pipeline)
    vae = family.pipeline.vae
    batcher = make_batcher(family.pipeline)
    settled(batcher, family)
    largest = []

    def fails(size):
        largest.append(size)
        return size > 8 * 100 * 100 * 4 * 4  # the channels of a whole image

    card.memory.fails_at = lambda size: fails(size) if decoding else False
    decoding, decode = [], vae.decoder.forward

    def watched(*args, **kwargs):
        decoding.append(1)
        try:
            return decode(*args, **kwargs)
        finally:
            decoding.pop()

    vae.decoder.forward = watched
    with caplog.at_level(logging.WARNING):
        tasks = run(batcher, calls)
    assert any("ran in tiles" in record.getMessage() for record in caplog.records)
    for task, image in zip(tasks, expected, strict=True):
        assert task.error is None
        assert (task.result.cpu() - image).abs().mean().item() < 0.05  # seams, but the same image
    assert not vae.use_tiling


@pytest.mark.parametrize("part", range(8))
def test_an_error_at_any_allocation_loses_no_image(part, card, make_batcher):
    family = FAMILIES["sd"]()
    move_to_card(family.pipeline)
    batcher = make_batcher(family.pipeline, prompt_cache_bytes=0)
    settled(batcher, family)
    commands = [job(number, steps=2, prompt=PROMPTS[number], seeds=(number,)) for number in range(2)]
    count = 0

    def images(fails_at=None):
        nonlocal count
        count = 0

        def fails(size):
            nonlocal count
            count += 1
            return count == fails_at

        card.memory.fails_at = fails
        events, made = serve(batcher, family.arguments, commands, shares_calls=False)
        assert sorted(made) == [0, 1], (fails_at, events)
        return made

    expected, used = images(), card.memory.used
    total = count
    for fails_at in range(1 + part * total // 80, total, total // 10):
        for number, (image,) in images(fails_at).items():
            assert same_image(image, expected[number][0])
    gc.collect()
    assert card.memory.used == used


@pytest.mark.parametrize("batching", ["continuous", "static"])
def test_a_worker_starts_and_serves_with_memory_for_few_images(batching, card, model_folder):
    requests = [{"seed": seed, "prompt": PROMPTS[seed]} for seed in range(4)]
    settings = {"device": "cuda", "dtype": "float32", "batching": batching, "max_batch_wait": 0.0}
    folder = model_folder("sdxl")
    _, expected = make_images(folder, *requests, **settings, max_batch_size=1)
    one = card.memory.peak
    card.memory.limit = int(1.02 * one)
    _, images = make_images(folder, *requests, **settings, max_batch_size=4)
    for image, other in zip(images, expected, strict=True):
        assert same_image(image, other)
    gc.collect()
    assert card.memory.used == 0


def test_an_idle_model_is_evicted_if_another_does_not_fit_beside_it(card, model_folder):
    folders = [f"{name}={model_folder('sdxl')}" for name in ("first", "second")]
    settings = {"device": "cuda", "dtype": "float32", "max_batch_size": 1, "model_memory": 1 << 30}
    worker = several.Worker(folders, **settings)
    card.memory.limit = int(1.5 * card.memory.used)
    events = worker.run(several.job(0, "second", guidance=5.0))
    (loaded,) = [event for event in events if isinstance(event, ev.ModelLoaded)]
    assert loaded.loaded == ("second",)
    assert worker.images[0].size == (64, 64)
    worker.device.close()
    del worker
    gc.collect()
    assert card.memory.used == 0

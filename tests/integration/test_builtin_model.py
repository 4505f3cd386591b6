"""`builtin:shapes` through the worker's own backend: the prompt decides the picture."""

import logging

import pytest

from imagegen_worker.backends import Row, StoppedError, completed
from imagegen_worker.backends.diffusers import DiffusersBackend
from imagegen_worker.config import LoadOptions, WorkerConfig
from imagegen_worker.core.model import ResolvedRequest
from tests.equality import same_image
from tools.shapes import drawing, grade

PROMPTS = 60
COLOURS_RIGHT, SHAPES_RIGHT = 0.90, 0.75
BATCH = 12
MAX_BYTES = 10_000_000


@pytest.fixture(scope="module")
def backend():
    config = WorkerConfig()
    backend = DiffusersBackend(
        config.model_source.location, config.model_name, LoadOptions(device="cpu", threads=1)
    )
    backend.model = backend.warm_up().models[0]
    yield backend
    backend.close()


def make_rows(backend, prompts, first_seed=0, **fields):
    model = backend.model
    rows = []
    for index, prompt in enumerate(prompts):
        request = ResolvedRequest(
            model=model.name,
            prompt=prompt,
            negative_prompt=fields.get("negative_prompt"),
            seeds=(first_seed + index,),
            num_inference_steps=fields.get("steps", model.num_inference_steps),
            guidance_scale=fields.get("guidance_scale", model.guidance_scale),
            width=fields.get("width", model.width),
            height=fields.get("height", model.height),
        )
        rows.append(Row(request, first_seed + index))
    return rows


def no_step(step, steps):
    """Nobody watches."""


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_what_the_libraries_log_takes_our_form(library, capfd, caplog):
    logging.getLogger(f"{library}.models").warning("not this")
    logging.getLogger(f"{library}.models").error("this")
    assert [record.getMessage() for record in caplog.records] == ["this"]
    assert capfd.readouterr().err == ""


def test_colours_and_shapes_are_what_the_prompt_says(backend):
    specs = grade.grading_specs(PROMPTS, seed=1)
    images = []
    for at in range(0, PROMPTS, BATCH):
        part = [drawing.plain_caption(spec) for spec in specs[at : at + BATCH]]
        images += backend.generate(make_rows(backend, part, first_seed=1000 + at), no_step)
    seen = [grade.measure(completed(image)) for image in images]
    pairs = list(zip(specs, seen, strict=True))
    foregrounds = sum(spec.foreground == m.foreground for spec, m in pairs)
    backgrounds = sum(spec.background == m.background for spec, m in pairs)
    assert (foregrounds + backgrounds) / (2 * PROMPTS) >= COLOURS_RIGHT
    assert sum(spec.shape == m.shape for spec, m in pairs) / PROMPTS >= SHAPES_RIGHT


def test_the_seed_alone_decides_which_of_the_pictures_it_is(backend):
    prompts = ["a red circle on a blue background"] * 2
    one, two = backend.generate(make_rows(backend, prompts, first_seed=1), no_step)
    assert not same_image(one, two)
    again = backend.generate(make_rows(backend, prompts, first_seed=1), no_step)
    assert all(map(same_image, again, (one, two)))


def test_company_changes_nothing_that_can_be_seen(backend):
    prompts = ["a red circle on a blue background", "a white star on a black background", "a green ring on pink"]
    together = backend.generate(make_rows(backend, prompts), no_step)
    for index, prompt in enumerate(prompts):
        (alone,) = backend.generate(make_rows(backend, [prompt], first_seed=index), no_step)
        assert same_image(alone, together[index])


def test_steps_are_told_and_can_stop_the_call(backend):
    told = []

    def on_step(step, steps):
        told.append((step, steps))
        if step == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        backend.generate(make_rows(backend, ["a red circle"], steps=8), on_step)
    assert told == [(1, 8), (2, 8), (3, 8)]


def test_odd_text_and_other_sizes_are_no_trouble(backend):
    prompts = ["", "Пёс и кот 🐕", "word " * 500]
    assert len(backend.generate(make_rows(backend, prompts, steps=2), no_step)) == 3
    (image,) = backend.generate(make_rows(backend, ["a red circle"], steps=2, width=96, height=64), no_step)
    assert completed(image).size == (96, 64)
    rows = make_rows(backend, ["a red circle"], steps=2, negative_prompt="blue")
    assert len(backend.generate(rows, no_step)) == 1


def test_it_is_an_ordinary_small_folder():
    folder = WorkerConfig().model_source.location
    assert (folder / "model_index.json").is_file()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MAX_BYTES
    weights = [path for path in folder.rglob("*") if path.suffix in (".bin", ".ckpt", ".pt", ".pkl")]
    assert not weights, "safetensors and nothing that is unpickled"

"""One run for each family with every kind of request that may share a forward; each image equals the stock image.

Portrait and landscape images have equally many tokens, and a square one half of them. Prompts have three lengths.
Requests join at ticks 0 to 4. One has two images, one is cancelled, one starts from an image, and one from an
image with a mask, where diffusers has such pipelines.
"""

import importlib.util
from functools import partial

import diffusers
import pytest

from imagegen_worker.backends import StoppedError
from imagegen_worker.engines.continuous.scheduler import BatchScheduler
from tests import families
from tests.integration.continuous.helpers import TOLERANCE, settled, stock
from tests.integration.continuous.helpers import run as run_alone
from tests.integration.models import recent
from tests.padding_families import PADDING_FAMILIES
from tests.pipelines import tiny_edit
from tests.stateful_families import STATEFUL_FAMILIES, sana_pag

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # about methods that diffusers' own pipelines call
]

SQUARE, PORTRAIT, LANDSCAPE = (64, 64), (64, 128), (128, 64)
"""Width and height."""
ONE_TOKEN, USUAL, LONG = "a", "two trees by the sea", "a long dog in the rain, at night, " * 12


def _family(pipeline, *, guidances=(5.0, 3.0), **arguments):
    pipeline.set_progress_bar_config(disable=True)
    sized = {"height": 64, "width": 64, "output_type": "pt"}
    return families.Family(pipeline, {**sized, **arguments}, guidances)


def kontext():
    return _family(tiny_edit.kontext(), image=families.picture(), _auto_resize=False, max_sequence_length=32)


def qwen_image():
    return _family(recent.qwen_image(), guidances=(), true_cfg_scale=4.0)


def qwen_edit():
    return _family(tiny_edit.qwen_edit(), guidances=(), true_cfg_scale=4.0, image=families.picture())


def sana():
    binned = {"use_resolution_binning": False, "complex_human_instruction": None, "clean_caption": False}
    return _family(tiny_edit.of("SanaPipeline", sana_pag), max_sequence_length=32, **binned)


SHARING = {
    **{name: make for name, make in families.FAMILIES.items() if name not in ("sdxl-img2img", "sdxl-inpaint")},
    "chroma": lambda: _family(recent.chroma(), max_sequence_length=32),
    "cogview4": PADDING_FAMILIES["cogview4"],
    "hidream": STATEFUL_FAMILIES["hidream"],
    "hunyuan-image": STATEFUL_FAMILIES["hunyuan-image"],
    "kontext": kontext,
    "qwen-image": qwen_image,
    "sana": sana,
}
"""Families whose requests must share forwards whatever their prompts."""
if importlib.util.find_spec("torchvision"):
    SHARING["qwen-image-edit"] = qwen_edit
OTHERS = {name: make for name, make in PADDING_FAMILIES.items() if name not in SHARING}
ONE_SIZE = {"hidream"}
"""Families whose pipeline scales every size to one area."""
ONE_IMAGE_A_CALL = {"qwen-image-edit", "kontext"}


@pytest.fixture(scope="module", params={**SHARING, **OTHERS})
def named(request):
    return request.param, {**SHARING, **OTHERS}[request.param]()


def fields(name, family, size, prompt, *, steps=2, negative=None, guidance=0):
    found = dict(family.arguments, prompt=prompt, num_inference_steps=steps)
    if name not in ONE_SIZE:
        found |= {"width": size[0], "height": size[1]}
    if "image" in found:
        found["image"] = found["image"].resize(size)
    if name == "kontext":
        found["max_area"] = size[0] * size[1]
    if family.guidances:
        found["guidance_scale"] = family.guidances[guidance]
    if negative is not None and family.negative_prompt and name != "kontext":
        found["negative_prompt"] = negative
    return found


def from_an_image(family, call, kind, **more):
    """Return a pipeline of the family that starts from an image, and the call; None if there is none."""
    if "image" in family.arguments:
        return None
    try:
        pipeline = kind.from_pipe(family.pipeline)
    except ValueError:
        return None
    pipeline.set_progress_bar_config(disable=True)
    image = families.picture()
    allowed = pipeline.__call__.__wrapped__.__code__.co_varnames
    changed = {**call, "image": image, "strength": 0.7, "num_inference_steps": 4, **more}
    return pipeline, {key: value for key, value in changed.items() if key in allowed}


def matrix(name, family):
    """Yield a pipeline, its call, the number of images, and the tick at which the request joins."""
    call = partial(fields, name, family)
    own = family.pipeline
    several = 1 if name in ONE_IMAGE_A_CALL else 2
    yield own, call(PORTRAIT, LONG), 1, 0
    yield own, call(PORTRAIT, ONE_TOKEN, steps=4, guidance=1), 1, 0  # cancelled
    yield own, call(LANDSCAPE, LONG, negative=ONE_TOKEN), 1, 1
    yield own, call(LANDSCAPE, USUAL, steps=3), 1, 2
    yield own, call(SQUARE, ONE_TOKEN, negative=LONG), 1, 3
    yield own, call(SQUARE, USUAL, steps=3, guidance=1), several, 4
    mask = families.picture().convert("L")
    others = (
        (diffusers.AutoPipelineForImage2Image, {}),
        (diffusers.AutoPipelineForInpainting, {"mask_image": mask}),
    )
    for kind, more in others:
        if (made := from_an_image(family, call(SQUARE, USUAL), kind, **more)) is not None:
            yield *made, 1, 4


CANCELLED = 1
CANCEL_AT = 7


def run(batcher, rows, events):
    """Run the requests, and cancel one of them; return the tasks."""
    scheduler = BatchScheduler(observe=events.append, timer=batcher.timer)
    tasks, tick = [], 0
    while True:
        while len(tasks) < len(rows) and rows[len(tasks)][3] <= tick:
            seed = len(tasks)
            pipeline, call, images, _ = rows[seed]
            prompted = call if images == 1 else dict(call, prompt=[call["prompt"]] * images)
            seeds = range(seed, seed + images)
            work = partial(batcher.generate_all, prompted, seeds, pipeline=pipeline)
            tasks.append(scheduler.start(work, images=images))
        if tick == CANCEL_AT:
            scheduler.cancel(tasks[CANCELLED])
        tick += 1
        if not scheduler.step() and len(tasks) == len(rows):
            return tasks


def test_each_image_equals_the_stock_image(named, make_batcher):
    name, family = named
    rows = list(matrix(name, family))
    expected = [
        [stock(pipeline, call, seed + image) for image in range(images)]
        for seed, (pipeline, call, images, _) in enumerate(rows)
    ]
    batcher = make_batcher(family.pipeline)
    for pipeline, *_ in rows:
        batcher.add(pipeline)
    settled(batcher, family)
    if name in ONE_SIZE:  # a call of another number of rows, without guidance, shows the batch dimensions
        run_alone(batcher, [fields(name, family, SQUARE, USUAL, guidance=3)])
    events = []
    with batcher.session():
        tasks = run(batcher, rows, events)
    assert isinstance(tasks.pop(CANCELLED).error, StoppedError)
    del expected[CANCELLED]
    for task, images in zip(tasks, expected, strict=True):
        assert task.error is None, task.error
        for image, same in zip(task.result, images, strict=True):
            assert (image - same).abs().max().item() <= TOLERANCE
    denoised = [event for event in events if event.stage.is_denoiser]
    if name in SHARING:
        assert max(len(event.tasks) for event in denoised) > 1
        assert {event.fallback for event in denoised} == {""}

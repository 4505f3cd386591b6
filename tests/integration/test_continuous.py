"""Stock diffusers pipelines through the hub: the image is the image, in any company and whatever goes wrong."""

import functools
import gc
import logging
import types

import numpy as np
import pytest
import torch
from greenlet import greenlet

from imagegen_worker.backends import DeviceMemoryError, StoppedError
from imagegen_worker.backends.diffusers import StepwiseDiffusers
from imagegen_worker.backends.diffusers.loaded import LoadedPipeline
from imagegen_worker.backends.diffusers.rendezvous import Rendezvous
from imagegen_worker.backends.diffusers.stages import ModuleStage
from imagegen_worker.config import LoadOptions
from imagegen_worker.continuous import ContinuousEngine
from imagegen_worker.continuous.hub import ForwardDone, ForwardSplit, Hub
from imagegen_worker.core import events as ev
from imagegen_worker.core.model import ResolvedRequest
from imagegen_worker.mailbox import Mailbox
from tests.families import FAMILIES

diffusers = pytest.importorskip("diffusers")
# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

TOLERANCE = 1e-4
"""The most by which a float32 image in company may differ from the one made alone; 0 to 1 are black to white."""
PROMPTS = ("a red cat", "a long dog in the rain, at night", "two trees", "a house by the sea")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def sdxl():
    return FAMILIES["sdxl"]()


@pytest.fixture
def meet(monkeypatch):
    """Return what makes a `Rendezvous`; it leaves the pipeline as it was, before what is patched is mended."""
    made = []

    def make(pipeline, **options):
        made.append(Rendezvous(pipeline, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def requests(family, count=4):
    """Calls that are unlike in prompt, steps and guidance."""
    for index in range(count):
        arguments = dict(family.arguments, prompt=PROMPTS[index % 4], num_inference_steps=(4, 6, 5, 3)[index % 4])
        arguments["guidance_scale"] = family.guidances[index % len(family.guidances)]
        if family.negative_prompt and index % 2:
            arguments["negative_prompt"] = "blurry"
        yield arguments


def stock(pipeline, arguments, seed):
    """The image of the plain pipeline."""
    return pipeline(**arguments, generator=torch.Generator("cpu").manual_seed(seed)).images[0]


def run(rendezvous, calls, arrivals=None, *, events=None, each_step=lambda hub, tasks, tick: None, pipelines=None):
    """Run calls, seeded by their place, that arrive after so many forwards; return their tasks."""
    tasks = []
    with rendezvous.session():
        hub = Hub(observe=(lambda event: None) if events is None else events.append, timer=rendezvous.timer)
        tick = 0
        while True:
            while len(tasks) < len(calls) and (arrivals is None or arrivals[len(tasks)] <= tick):
                index = len(tasks)
                pipeline = None if pipelines is None else pipelines[index]
                work = functools.partial(rendezvous.generate, calls[index], index, pipeline=pipeline)
                tasks.append(hub.start(work))
            each_step(hub, tasks, tick)
            tick += 1
            if not hub.step() and len(tasks) == len(calls):
                return tasks


def settled(rendezvous, family):
    """Let the models be seen to keep no state, so that requests share from their first step on."""
    run(rendezvous, list(requests(family, 1)))


def difference(task, image):
    if task.error is not None:
        raise task.error
    return (task.result - image).abs().max().item()


# ---- the image is the image --------------------------------------------------------------------------------


def test_alone_bit_for_bit_and_in_company_within_rounding(family, meet):
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    rendezvous = meet(family.pipeline)
    (task,) = run(rendezvous, calls[:1])
    assert difference(task, expected[0]) == 0
    events = []
    tasks = run(rendezvous, calls, (0, 0, 1, 2), events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) >= 3
    assert {event.fallback for event in events} == {""}


def test_alone_after_company_bit_for_bit(family, meet):
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, 0) for call in calls]
    rendezvous = meet(family.pipeline)
    run(rendezvous, calls)
    for call, image in zip(calls, expected, strict=True):
        (task,) = run(rendezvous, [call])
        assert difference(task, image) == 0


def test_deterministic_in_any_company_bit_for_bit(family, meet):
    calls = list(requests(family))
    rendezvous = meet(family.pipeline, fixed_rows=4)
    alone = []
    for seed, call in enumerate(calls):
        with rendezvous.session():
            hub = Hub()
            task = hub.start(functools.partial(rendezvous.generate, call, seed))
            while hub.step():
                pass
        assert difference(task, stock(family.pipeline, call, seed)) <= TOLERANCE
        alone.append(task.result)
    for arrivals in ((0, 0, 0, 0), (0, 1, 1, 3)):
        for task, image in zip(run(rendezvous, calls, arrivals), alone, strict=True):
            assert difference(task, image) == 0


def test_schedulers_mix_in_one_forward(sdxl, meet):
    kinds = ("EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "DDIMScheduler", "HeunDiscreteScheduler")
    pipelines = []
    for kind in kinds:
        options = {"clip_sample": False} if kind == "DDIMScheduler" else {}
        scheduler = getattr(diffusers, kind).from_config(sdxl.pipeline.scheduler.config, **options)
        pipelines.append(type(sdxl.pipeline).from_pipe(sdxl.pipeline, scheduler=scheduler))
        pipelines[-1].set_progress_bar_config(disable=True)
    calls = list(requests(sdxl))
    expected = [stock(pipeline, call, i) for i, (pipeline, call) in enumerate(zip(pipelines, calls, strict=True))]
    rendezvous = meet(sdxl.pipeline)
    settled(rendezvous, sdxl)
    events = []
    tasks = run(rendezvous, calls, (0, 0, 1, 1), pipelines=pipelines, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 4


def test_text_to_image_and_image_to_image_share(sdxl, meet):
    pipe = sdxl.pipeline
    others = [FAMILIES[name]() for name in ("sdxl-img2img", "sdxl-inpaint")]
    pipelines = [pipe, *(type(other.pipeline).from_pipe(pipe) for other in others)]
    calls = [next(requests(kind)) for kind in (sdxl, *others)]
    for pipeline in pipelines:
        pipeline.set_progress_bar_config(disable=True)
    expected = [stock(pipeline, call, i) for i, (pipeline, call) in enumerate(zip(pipelines, calls, strict=True))]
    rendezvous = meet(pipe)
    settled(rendezvous, sdxl)
    events = []
    tasks = run(rendezvous, calls, pipelines=pipelines, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 3


def test_half_precision_in_company(meet):
    family = FAMILIES["sdxl"]()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    family.pipeline.to(torch.bfloat16)
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    tasks = run(meet(family.pipeline), calls)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= 0.05


# ---- joining is left where it can't be had -----------------------------------------------------------------


def test_sizes_do_not_mix(sdxl, meet):
    calls = [
        dict(call, height=side, width=side) for call, side in zip(requests(sdxl), (64, 128, 64, 128), strict=True)
    ]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    rendezvous = meet(sdxl.pipeline)
    settled(rendezvous, sdxl)
    events = []
    for task, image in zip(run(rendezvous, calls, events=events), expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert {event.fallback for event in events} == {""}
    assert max(len(event.tasks) for event in events if event.stage.is_denoiser) == 2


def patched(monkeypatch, module, forward, method="forward"):
    """Put another forward in the place of a model's, before it is wrapped."""
    original = getattr(module, method)
    monkeypatch.setattr(module, method, functools.wraps(original)(functools.partial(forward, original)))


def rows_of(args, kwargs):
    """The rows of a call, whose first argument may come by name."""
    return len(args[0] if args else next(iter(kwargs.values())))


def test_a_denoiser_whose_rows_depend_on_each_other_is_found_out(sdxl, meet, monkeypatch, caplog):
    def mixing(original, *args, **kwargs):
        output = original(*args, **kwargs)[0]
        return (output - output.mean(dim=0, keepdim=True),)

    patched(monkeypatch, sdxl.pipeline.unet, mixing)
    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    events = []
    tasks = run(meet(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert "unequal" in {event.fallback for event in events}
    assert len([record for record in caplog.records if "unet" in record.getMessage()]) <= 2


def test_a_denoiser_that_refuses_company_goes_call_by_call(sdxl, meet, monkeypatch, caplog):
    def refusing(original, *args, **kwargs):
        if rows_of(args, kwargs) > 2:
            raise ValueError("two rows at most")
        return original(*args, **kwargs)

    patched(monkeypatch, sdxl.pipeline.unet, refusing)
    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    events = []
    tasks = run(meet(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert "error" in {event.fallback for event in events}
    assert len([record for record in caplog.records if "unet" in record.getMessage()]) == 1


def test_a_denoiser_that_keeps_state_serves_one_request_at_a_time(sdxl, meet, monkeypatch):
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
    for task, image in zip(run(meet(sdxl.pipeline), calls), expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert len(unet.kept) == 12
    del unet.kept


def test_arguments_that_nobody_knows_go_alone(sdxl, meet, monkeypatch):
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
    tasks = run(meet(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    # Whoever is last has no company, and needs no reason to go alone.
    assert {event.fallback for event in events if event.stage.is_denoiser} - {""} == {"opaque argument"}


def test_a_pipeline_without_a_denoiser_runs_whole(meet):
    class Whole:
        device = torch.device("cpu")

        def __init__(self):
            self.components = {}

        def set_progress_bar_config(self, **options):
            pass

        def __call__(self, prompt, generator):
            return ([torch.rand(3, generator=generator)],)

    (task,) = run(meet(Whole()), [{"prompt": "a cat"}])
    assert torch.equal(task.result, torch.rand(3, generator=torch.Generator().manual_seed(0)))


# ---- what happens to one is not felt by another ------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 3, 6])
def test_cancelling_a_member_leaves_the_others_as_they_were(sdxl, meet, at):
    calls = [dict(call, num_inference_steps=6) for call in requests(sdxl, 3)]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    rendezvous = meet(sdxl.pipeline)

    def cancel(hub, tasks, tick):
        if tick == at:
            hub.cancel(tasks[1])

    tasks = run(rendezvous, calls, each_step=cancel)
    assert isinstance(tasks[1].error, StoppedError)
    for index in (0, 2):
        assert difference(tasks[index], expected[index]) <= TOLERANCE


def out_of_memory_above(rows, since=0):
    """A forward that runs out of memory above so many rows, after so many calls."""
    calls = 0

    def forward(original, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > since and rows_of(args, kwargs) > rows:
            raise torch.OutOfMemoryError(f"more than {rows} rows")
        return original(*args, **kwargs)

    return forward


@pytest.mark.parametrize("rows", [1, 3, 4])
@pytest.mark.parametrize("since", [0, 3, 6])
def test_out_of_memory_in_the_denoiser_loses_nothing(sdxl, meet, monkeypatch, rows, since):
    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, sdxl.pipeline.unet, out_of_memory_above(rows, since))
    events = []
    tasks = run(meet(sdxl.pipeline), calls, (0, 0, 1, 2), events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert any(isinstance(event, ForwardSplit) for event in events)


@pytest.mark.parametrize("name", ["z-image", "flux2-klein"])
def test_lists_are_split_too(meet, monkeypatch, name):
    family = FAMILIES[name]()
    calls = list(requests(family))
    expected = [stock(family.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, family.pipeline.transformer, out_of_memory_above(1))
    for task, image in zip(run(meet(family.pipeline), calls), expected, strict=True):
        assert difference(task, image) <= TOLERANCE


@pytest.mark.parametrize("part", ["vae", "text_encoder", "text_encoder_2"])
def test_out_of_memory_in_decoder_and_encoders_loses_nothing(sdxl, meet, monkeypatch, part):
    calls = [dict(call, num_inference_steps=3) for call in requests(sdxl)]
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    module = getattr(sdxl.pipeline, part)
    method = "decode" if part == "vae" else "forward"
    patched(monkeypatch, module, out_of_memory_above(1), method)
    events = []
    rendezvous = meet(sdxl.pipeline)
    settled(rendezvous, sdxl)
    tasks = run(rendezvous, calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert any(isinstance(event, ForwardSplit) for event in events)


def test_a_request_too_big_alone_fails_alone(sdxl, meet, monkeypatch):
    def forward(original, sample, *args, **kwargs):
        if sample.shape[-1] > 8:
            raise torch.OutOfMemoryError("too big")
        return original(sample, *args, **kwargs)

    calls = list(requests(sdxl, 3))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, sdxl.pipeline.unet, forward)
    calls[1] |= {"height": 128, "width": 128}
    tasks = run(meet(sdxl.pipeline), calls)
    assert isinstance(tasks[1].error, DeviceMemoryError)
    for index in (0, 2):
        assert difference(tasks[index], expected[index]) <= TOLERANCE


def test_out_of_memory_outside_of_a_forward_is_the_requests_own(sdxl, meet, monkeypatch):
    def encode(*args, **kwargs):
        raise torch.OutOfMemoryError("encoding")

    other = FAMILIES["sdxl-img2img"]()
    pipeline = type(other.pipeline).from_pipe(sdxl.pipeline)
    pipeline.set_progress_bar_config(disable=True)
    calls = [next(requests(sdxl)), next(requests(other))]
    image = stock(sdxl.pipeline, calls[0], 0)
    monkeypatch.setattr(sdxl.pipeline.vae, "encode", encode)
    events = []
    tasks = run(meet(sdxl.pipeline), calls, pipelines=[sdxl.pipeline, pipeline], events=events)
    assert isinstance(tasks[1].error, DeviceMemoryError)
    assert difference(tasks[0], image) <= TOLERANCE
    (split,) = [event for event in events if isinstance(event, ForwardSplit)]
    assert (split.stage.name, split.max_rows) == ("vae.encode", 0)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: 12 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_on_the_cpu_loses_nothing_either(sdxl, meet, monkeypatch, error):
    def forward(original, *args, **kwargs):
        if rows_of(args, kwargs) > 3:
            raise error
        return original(*args, **kwargs)

    calls = list(requests(sdxl))
    expected = [stock(sdxl.pipeline, call, seed) for seed, call in enumerate(calls)]
    patched(monkeypatch, sdxl.pipeline.unet, forward)
    events = []
    tasks = run(meet(sdxl.pipeline), calls, events=events)
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    assert any(isinstance(event, ForwardSplit) for event in events)
    assert "error" not in {event.fallback for event in events if isinstance(event, ForwardDone)}


def test_what_the_warm_up_learned_of_memory_the_engine_knows(sdxl, monkeypatch, tmp_path):
    sdxl.pipeline.save_pretrained(tmp_path)
    options = LoadOptions(device="cpu", threads=1)
    backend = StepwiseDiffusers(tmp_path, "sdxl", options, max_batch_size=4)
    load = LoadedPipeline.__init__

    def loading(self, *arguments):
        load(self, *arguments)
        patched(monkeypatch, self.pipeline.unet, out_of_memory_above(4))

    monkeypatch.setattr(LoadedPipeline, "__init__", loading)
    (model,) = backend.warm_up().models
    mailbox, images = Script([job(number, steps=3) for number in range(4)]), {}
    encoder = types.SimpleNamespace(submit=lambda raw: images.__setitem__(raw.number, raw.images))
    caps = {"caps": backend.caps, "costs": backend.costs}
    ContinuousEngine(backend, encoder, max_batch_size=4, **caps).run(mailbox)
    mailbox.close()
    backend.close()
    assert (model.width, len(images)) == (64, 4)
    assert not [event for event in mailbox.posted if isinstance(event, ev.CallFailed)]


# ---- progress, prompts, leaks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sdxl", "sdxl-img2img", "pixart-sigma"])
def test_steps_are_told(meet, name):
    family = FAMILIES[name]()  # PixArt has no callback_on_step_end: its scheduler tells
    rendezvous = meet(family.pipeline)
    told = []
    call = next(requests(family))
    with rendezvous.session():
        hub = Hub()
        hub.start(lambda: rendezvous.generate(call, 0, lambda step, steps: told.append((step, steps))))
        while hub.step():
            pass
    steps = told[-1][1]
    assert told == [(step, steps) for step in range(1, steps + 1)]
    assert steps == (2 if name == "sdxl-img2img" else 4)


def test_equal_prompts_are_encoded_once_and_exactly(sdxl, meet, monkeypatch):
    encoded = []

    def counting(original, *args, **kwargs):
        encoded.append(args[0].shape[0])
        return original(*args, **kwargs)

    patched(monkeypatch, sdxl.pipeline.text_encoder, counting)
    calls = [dict(next(requests(sdxl)), negative_prompt="blurry")] * 4
    expected = [stock(sdxl.pipeline, calls[0], seed) for seed in range(4)]
    encoded.clear()
    rendezvous = meet(sdxl.pipeline)
    tasks = run(rendezvous, calls)
    assert len(encoded) == 2
    for task, image in zip(tasks, expected, strict=True):
        assert difference(task, image) <= TOLERANCE
    (task,) = run(rendezvous, calls[:1])
    assert len(encoded) == 2
    assert difference(task, expected[0]) == 0


def test_the_prompt_cache_is_bounded(sdxl, meet):
    rendezvous = meet(sdxl.pipeline, prompt_cache_bytes=100_000)
    for index in range(8):
        run(rendezvous, [dict(next(requests(sdxl)), prompt=f"cat {index}", num_inference_steps=1)])
    assert 0 < rendezvous._prompts.nbytes <= 100_000


def test_gradients_stay_off_in_tasks_and_as_they_were_outside(sdxl, meet):
    seen = []

    def look(hub, tasks, tick):
        seen.append(torch.is_grad_enabled())

    assert torch.is_grad_enabled()
    calls = list(requests(sdxl))
    tasks = run(meet(sdxl.pipeline), calls, each_step=look)  # some end before others
    assert not any(seen)
    assert torch.is_grad_enabled()
    assert not any(task.result.requires_grad for task in tasks)


def test_closing_leaves_the_pipeline_as_it_was(sdxl):
    pipeline = sdxl.pipeline
    before = pipeline.unet.forward, pipeline.vae.decode, pipeline.text_encoder.forward
    rendezvous = Rendezvous(pipeline)
    assert isinstance(pipeline.unet.forward.stage, ModuleStage)
    rendezvous.close()
    assert (pipeline.unet.forward, pipeline.vae.decode, pipeline.text_encoder.forward) == before


class Backend:
    """A pipeline behind the engine, as `ContinuousEngine` wants it."""

    def __init__(self, rendezvous, arguments):
        self.rendezvous = rendezvous
        self.arguments = arguments
        self.timer = rendezvous.timer

    def session(self):
        return self.rendezvous.session()

    def make(self, row, on_step):
        request = row.request
        arguments = dict(
            self.arguments,
            prompt=request.prompt,
            num_inference_steps=request.num_inference_steps,
            guidance_scale=request.guidance_scale,
            height=request.height,
            width=request.width,
            output_type="pil",
        )
        return self.rendezvous.generate(arguments, row.seed, on_step)


class Script(Mailbox):
    """Gives its commands one at a time, and `Stop` when nothing is left to do."""

    def __init__(self, commands):
        super().__init__()
        self.commands = iter(commands)
        self.posted = []

    def take(self, timeout):
        return next(self.commands, ev.Stop() if timeout is None else None)

    def post(self, event):
        self.posted.append(event)


def job(number, *, seeds=(0,), steps=2, guidance=5.0, prompt="a cat"):
    request = ResolvedRequest(
        model="sdxl",
        prompt=prompt,
        negative_prompt=None,
        seeds=tuple(seeds),
        num_inference_steps=steps,
        guidance_scale=guidance,
        width=64,
        height=64,
    )
    return ev.Job(number, request, arrived=0.0)


def serve(rendezvous, arguments, commands, max_batch_size=8):
    """Run an engine on these commands; return what it posted and the images by job."""
    mailbox, images = Script(commands), {}
    encoder = types.SimpleNamespace(submit=lambda raw: images.__setitem__(raw.number, raw.images))
    ContinuousEngine(Backend(rendezvous, arguments), encoder, max_batch_size=max_batch_size).run(mailbox)
    mailbox.close()
    return mailbox.posted, images


def test_the_engine_makes_each_image_as_if_it_were_alone(sdxl, meet):
    arguments = dict(sdxl.arguments, output_type="pil")
    expected = [
        stock(sdxl.pipeline, dict(arguments, prompt="a cat", num_inference_steps=3, guidance_scale=5.0), seed)
        for seed in (5, 6, 7)
    ]
    posted, images = serve(meet(sdxl.pipeline), arguments, [job(1, seeds=(5, 6, 7), steps=3)])
    for image, same in zip(images[1], expected, strict=True):
        assert np.abs(np.asarray(image, dtype=int) - np.asarray(same, dtype=int)).max() <= 1
    done = [event for event in posted if isinstance(event, ev.CallDone)]
    assert max(call.requests for call in done) == 3
    assert max(call.rows for call in done) == 6
    assert sum(call.images for call in done) == 3


def test_two_hundred_requests_leave_nothing_behind(sdxl, meet):
    rendezvous = meet(sdxl.pipeline)

    def living():
        gc.collect()
        things = gc.get_objects()
        return (
            sum(issubclass(type(thing), greenlet) for thing in things),
            sum(issubclass(type(thing), torch.Tensor) for thing in things),
            sum(issubclass(type(thing), diffusers.DiffusionPipeline) for thing in things),
        )

    def commands(count):
        for number in range(count):
            yield job(number, steps=1 + number % 3)
            if number % 3:
                yield None  # the engine runs a forward
            if number % 10 == 5:
                yield ev.Cancel(number)

    serve(rendezvous, sdxl.arguments, commands(20))
    before = living()
    _, images = serve(rendezvous, sdxl.arguments, commands(200))
    assert len(images) >= 180
    del images
    assert all(now <= then for now, then in zip(living(), before, strict=True))

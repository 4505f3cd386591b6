"""From a request to what is made: defaults, and a word on everything that can't be."""

import dataclasses

import pytest

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.accepted import AcceptedParameter
from imagegen_protocol.declaration import Parameter, ParameterInfo
from imagegen_protocol.request import make_request
from imagegen_worker.core import capabilities, model
from imagegen_worker.core.capabilities import TaskCapabilities
from tests.unit.worker.bench import MODEL, resolved

PLAIN = dataclasses.replace(MODEL, name="plain", guidance_scale=None, takes_negative_prompt=False)


def request(**fields):
    return GenerationRequest(**{"prompt": "p", "seed": 5, **fields})


def test_defaults_are_the_models():
    made = MODEL.resolve(request())
    assert (made.width, made.height, made.num_inference_steps, made.guidance_scale) == (64, 64, 4, 7.5)
    assert made.negative_prompt is None
    assert made.seeds == (5,)
    assert made.model == "m"


def test_what_is_given_counts():
    made = MODEL.resolve(
        request(width=128, height=8, num_inference_steps=9, guidance_scale=0.0, negative_prompt="n", num_images=3)
    )
    assert (made.width, made.height, made.num_inference_steps, made.guidance_scale) == (128, 8, 9, 0.0)
    assert made.negative_prompt == "n"
    assert made.seeds == (5, 6, 7)
    assert made.parameters() == {
        "task": "text-to-image",
        "output_format": "png",
        "seed": 5,
        "num_images": 3,
        "num_inference_steps": 9,
        "guidance_scale": 0.0,
        "width": 128,
        "height": 8,
    }


def test_loras_stand_in_the_order_of_their_names_and_keep_others_out_of_the_batch():
    able = dataclasses.replace(MODEL, takes_loras=True)
    made = able.resolve(make_request(prompt="p", seed=5, loras=[{"name": "b", "scale": -2}, {"name": "a"}]))
    assert made.loras == (("a", 1.0), ("b", -2.0))
    assert made.parameters()["loras"] == [{"name": "a", "scale": 1.0}, {"name": "b", "scale": -2.0}]
    same = able.resolve(make_request(prompt="q", seed=6, loras=[{"name": "a"}, {"name": "b", "scale": -2}]))
    other = able.resolve(make_request(prompt="q", seed=6, loras=[{"name": "a"}]))
    assert made.batch_key == same.batch_key
    assert len({made.batch_key, other.batch_key, able.resolve(request()).batch_key}) == 3


def test_loras_where_there_are_none_are_told():
    with pytest.raises(InvalidRequestError, match="loras: the worker has none for the model m"):
        MODEL.resolve(make_request(prompt="p", seed=5, loras=[{"name": "a"}]))
    assert MODEL.resolve(make_request(prompt="p", seed=5, loras=[])).loras == ()


def test_an_empty_negative_prompt_is_no_negative_prompt_for_a_model_that_takes_none():
    made = PLAIN.resolve(request(negative_prompt=""))
    assert made.negative_prompt is None
    assert made.guidance_scale is None


@pytest.mark.parametrize("field", ["width", "height"])
@pytest.mark.parametrize(
    ("model", "side", "words"),
    [
        (MODEL, 520, ["520", "at most 512"]),
        (MODEL, 100, ["100", "multiples of 8", "96 or 104"]),
        (MODEL, 9, ["9", "multiples of 8", "8 or 16"]),
        (dataclasses.replace(MODEL, max_side=510), 509, ["509", "multiples of 8", "use 504"]),
    ],
)
def test_a_wrong_side_is_told_with_field_value_and_range(field, model, side, words):
    with pytest.raises(InvalidRequestError) as caught:
        model.resolve(request(**{field: side}))
    for word in [field, *words]:
        assert word in caught.value.message


@pytest.mark.parametrize(("field", "value"), [("negative_prompt", "n"), ("guidance_scale", 1.0)])
def test_what_a_model_does_not_take_is_told(field, value):
    with pytest.raises(InvalidRequestError, match=f"{field}: the model plain accepts none"):
        PLAIN.resolve(request(**{field: value}))


# ---- images, schedulers, further parameters ----------------------------------------------------------------

RICH = dataclasses.replace(
    MODEL,
    schedulers=("OwnScheduler", "OtherScheduler"),
    tasks={
        "text-to-image": TaskCapabilities(
            extra={"clip_skip": int | None, "target": tuple[int, int] | None, "eta": float}
        ),
        "image-to-image": TaskCapabilities(strength=0.5, owned={"generator": "say the seed"}),
    },
)
HINTS = dataclasses.replace(MODEL, name="hints", tasks={"image-to-image": TaskCapabilities()})


def asked(**fields):
    return make_request(**{"prompt": "p", "seed": 5, **fields})


def test_the_task_follows_from_the_images_and_has_its_own_defaults():
    plain = RICH.resolve(asked())
    assert (plain.task, plain.strength, plain.scheduler) == ("text-to-image", None, "OwnScheduler")
    other = RICH.resolve(asked(inputs=["image"], scheduler="OtherScheduler"), (72, 50))
    assert (other.task, other.strength, other.scheduler) == ("image-to-image", 0.5, "OtherScheduler")
    assert (other.width, other.height) == (72, 48)
    assert RICH.resolve(asked(inputs=["image"], strength=0.25), (64, 64)).strength == 0.25


def test_the_format_has_its_quality():
    assert [RICH.resolve(asked()).output_format, RICH.resolve(asked()).quality] == ["png", None]
    assert RICH.resolve(asked(output_format="webp")).quality == 90
    assert RICH.resolve(asked(output_format="jpeg", quality=5)).quality == 5


def test_extra_parameters_come_in_the_types_that_the_model_wants():
    extra = {"clip_skip": 2, "target": [64, 32], "eta": 1}
    made = RICH.resolve(asked(extra=extra))
    assert made.extra == {"clip_skip": 2, "target": (64, 32), "eta": 1.0}
    assert isinstance(made.extra["eta"], float)
    assert made.parameters()["extra"] == made.extra
    assert RICH.resolve(asked(extra={"clip_skip": None})).extra == {"clip_skip": None}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"inputs": ["image", "mask_image"]},
            "inputs: the model m supports text-to-image and image-to-image, not inpainting: got the inputs image",
        ),
        (
            {"scheduler": "Third"},
            "scheduler: the model m does not support 'Third'; supported: OwnScheduler, Other",
        ),
        ({"extra": {"foo": 1}}, "extra: the model m does not accept 'foo'; accepted: clip_skip, eta, target"),
        ({"extra": {"clip_skip": "two"}}, "extra: clip_skip: expected `int | null`, got `str`, got 'two'"),
        ({"extra": {"target": [1]}}, "extra: target: expected `array` of length 2"),
        ({"extra": {"eta": None}}, "extra: eta: expected `float`, got `null`, got None"),
        ({"inputs": ["image"], "extra": {"clip_skip": 1}}, "does not accept 'clip_skip'; accepted: none"),
        (
            {"inputs": ["image"], "extra": {"generator": 1}},
            "extra: 'generator' is not an extra parameter: say the seed",
        ),
        (
            {"inputs": ["image"], "strength": 0.2},
            "strength: 0.2 of 4 steps leaves no step; at least 0.25 is needed, or 5 steps",
        ),
        ({"inputs": ["image"], "num_inference_steps": 1}, "strength: 0.5 of 1 steps leaves no step"),
    ],
)
def test_what_the_model_can_not_is_told_before_images_are_looked_at(fields, words):
    with pytest.raises(InvalidRequestError) as caught:
        RICH.check(asked(**fields))
    assert words in caught.value.message


def test_a_model_that_needs_an_image_and_has_no_strength():
    with pytest.raises(
        InvalidRequestError, match="the model hints supports image-to-image, not text-to-image: got no"
    ):
        HINTS.check(asked())
    with pytest.raises(InvalidRequestError, match="strength: the model hints accepts none"):
        HINTS.check(asked(inputs=["image"], strength=0.5))
    with pytest.raises(InvalidRequestError, match="'X'; supported: none"):
        HINTS.check(asked(inputs=["image"], scheduler="X"))
    assert HINTS.resolve(asked(inputs=["image"]), (64, 64)).strength is None


@pytest.mark.parametrize(("steps", "enough"), [(steps, 1 / steps) for steps in range(1, 1001, 37)])
def test_what_is_said_to_be_enough_is_enough(steps, enough):
    with pytest.raises(InvalidRequestError) as caught:
        RICH.check(asked(inputs=["image"], strength=enough * 0.9, num_inference_steps=steps))
    told = caught.value.message.split("at least ")[1].split(" is")[0]
    RICH.check(asked(inputs=["image"], strength=float(told), num_inference_steps=steps))
    more = int(caught.value.message.split(" or ")[1].split(" steps")[0])
    if more <= 1000:
        RICH.check(asked(inputs=["image"], strength=enough * 0.9, num_inference_steps=more))


@pytest.mark.parametrize(
    "other",
    [
        {"task": "image-to-image"},
        {"strength": 0.5},
        {"scheduler": "Other"},
        {"extra": {"a": 1}},
    ],
)
def test_what_must_be_alike_in_one_call_keeps_apart(other):
    assert resolved().batch_key != resolved(**other).batch_key


def test_values_that_python_takes_for_equal_keep_apart():
    assert len({resolved(extra={"a": value}).batch_key for value in (1, 1.0, True)}) == 3
    one, two = resolved(extra={"a": 1, "b": 2}), resolved(extra={"b": 2, "a": 1})
    assert one.batch_key == two.batch_key
    assert resolved(output_format="webp", quality=3).batch_key == resolved().batch_key, "encoding is no part of it"


def test_images_are_no_hindrance_unless_several_are_hints_for_one_picture():
    from PIL import Image

    images = [Image.new("RGB", (64, 64)) for _ in range(2)]
    started = [resolved(task="image-to-image", image=image, strength=0.5).batch_key for image in images]
    assert started[0] == started[1]
    hinted = [resolved(task="image-to-image", image=image).batch_key for image in images]
    assert hinted[0] != hinted[1]


# ---- parameters that go to the call as they are --------------------------------------------------------------


class NewRequest(GenerationRequest):
    """A request with a declared parameter that the worker has no code for."""

    rescale: float | None = None


@pytest.fixture
def rescaling(monkeypatch):
    """A model whose call accepts the new parameter, for one of its tasks."""
    info = ParameterInfo(label="Rescale", description="How much to rescale.")
    declared = {
        **model.BODY_PARAMETERS,
        "rescale": Parameter(name="rescale", info=info, kind="number", required=False),
    }
    for module in (model, capabilities):
        monkeypatch.setattr(module, "BODY_PARAMETERS", declared)
    monkeypatch.setattr(model, "CALL_PARAMETERS", model.CALL_PARAMETERS | {"rescale"})
    call = TaskCapabilities.of_call({"prompt": None, "rescale": 0.25, "callback": print}, {}, {})
    return dataclasses.replace(
        MODEL, tasks={"text-to-image": call, "image-to-image": TaskCapabilities(strength=0.5)}
    )


def test_a_new_parameter_is_passed_reported_and_keeps_batches_apart(rescaling):
    given, absent = (rescaling.resolve(NewRequest(prompt="p", seed=5, rescale=value)) for value in (0.75, None))
    assert (given.call_arguments()["rescale"], absent.call_arguments()["rescale"]) == (0.75, 0.25)
    assert (given.parameters()["rescale"], given.parameters_of(5)["rescale"]) == (0.75, 0.75)
    assert given.batch_key != absent.batch_key


def test_a_new_parameter_is_refused_by_a_call_without_it_and_told_by_one_with_it(rescaling):
    with pytest.raises(InvalidRequestError, match="rescale: the model m accepts none for image-to-image"):
        rescaling.check(NewRequest(prompt="p", seed=5, rescale=0.75, inputs=["image"]))
    assert "rescale" not in rescaling.resolve(NewRequest(prompt="p", seed=5, inputs=["image"]), (8, 8)).arguments
    assert rescaling.capabilities().parameters == {"rescale": AcceptedParameter(default=0.25)}


def test_what_a_result_reports_is_what_the_declaration_says():
    found = RICH.resolve(asked(inputs=["image"], output_format="webp", extra={}), (64, 64)).parameters()
    assert found == {
        "task": "image-to-image", "seed": 5, "num_images": 1, "num_inference_steps": 4, "guidance_scale": 7.5,
        "width": 64, "height": 64, "strength": 0.5, "scheduler": "OwnScheduler", "output_format": "webp",
        "quality": 90,
    }  # fmt: skip


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.3, 0.1, 1 / 3, 1 / 161, 0.001])
def test_the_least_steps_of_a_task_leave_one_to_make(strength):
    made = dataclasses.replace(RICH, tasks={"image-to-image": TaskCapabilities(strength=strength)})
    least = made.least_steps("image-to-image")
    made.check(asked(inputs=["image"], num_inference_steps=least))
    assert int(strength * (least - 1)) < 1

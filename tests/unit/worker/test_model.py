"""Resolving of requests: defaults of the model, validation errors and batch keys."""

import dataclasses

import pytest

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.capabilities import AcceptedParameter
from imagegen_protocol.declaration import Parameter, ParameterInfo
from imagegen_protocol.request import make_request
from imagegen_worker.core import capabilities, model
from imagegen_worker.core.capabilities import TaskCapabilities
from tests.unit.worker.bench import MODEL, resolved

PLAIN = dataclasses.replace(MODEL, name="plain", guidance_scale=None, takes_negative_prompt=False)


def request(**fields):
    return GenerationRequest(**{"prompt": "p", "seed": 5, **fields})


def test_absent_parameters_have_the_defaults_of_the_model():
    resolved_request = MODEL.resolve(request())
    assert (
        resolved_request.width,
        resolved_request.height,
        resolved_request.num_inference_steps,
        resolved_request.guidance_scale,
    ) == (64, 64, 4, 7.5)
    assert resolved_request.negative_prompt is None
    assert resolved_request.seeds == (5,)
    assert resolved_request.model == "m"


def test_given_parameters_override_the_defaults():
    resolved_request = MODEL.resolve(
        request(width=128, height=8, num_inference_steps=9, guidance_scale=0.0, negative_prompt="n", num_images=3)
    )
    assert (
        resolved_request.width,
        resolved_request.height,
        resolved_request.num_inference_steps,
        resolved_request.guidance_scale,
    ) == (128, 8, 9, 0.0)
    assert resolved_request.negative_prompt == "n"
    assert resolved_request.seeds == (5, 6, 7)
    assert resolved_request.parameters() == {
        "task": "text-to-image",
        "output_format": "png",
        "seed": 5,
        "num_images": 3,
        "num_inference_steps": 9,
        "guidance_scale": 0.0,
        "width": 128,
        "height": 8,
    }


def test_loras_are_sorted_by_name_and_are_part_of_the_batch_key():
    able = dataclasses.replace(MODEL, takes_loras=True)
    resolved_request = able.resolve(
        make_request(prompt="p", seed=5, loras=[{"name": "b", "scale": -2}, {"name": "a"}])
    )
    assert resolved_request.loras == (("a", 1.0), ("b", -2.0))
    assert resolved_request.parameters()["loras"] == [{"name": "a", "scale": 1.0}, {"name": "b", "scale": -2.0}]
    same = able.resolve(make_request(prompt="q", seed=6, loras=[{"name": "a"}, {"name": "b", "scale": -2}]))
    other = able.resolve(make_request(prompt="q", seed=6, loras=[{"name": "a"}]))
    assert resolved_request.batch_key == same.batch_key
    assert len({resolved_request.batch_key, other.batch_key, able.resolve(request()).batch_key}) == 3


def test_loras_are_rejected_by_a_model_that_accepts_none():
    with pytest.raises(InvalidRequestError, match="loras: the worker has none for the model m"):
        MODEL.resolve(make_request(prompt="p", seed=5, loras=[{"name": "a"}]))
    assert MODEL.resolve(make_request(prompt="p", seed=5, loras=[])).loras == ()


def test_an_empty_negative_prompt_is_accepted_by_a_model_that_accepts_none():
    resolved_request = PLAIN.resolve(request(negative_prompt=""))
    assert resolved_request.negative_prompt is None
    assert resolved_request.guidance_scale is None


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
def test_the_error_for_an_invalid_size_names_field_value_and_range(field, model, side, words):
    with pytest.raises(InvalidRequestError) as caught:
        model.resolve(request(**{field: side}))
    for word in [field, *words]:
        assert word in caught.value.message


@pytest.mark.parametrize(("field", "value"), [("negative_prompt", "n"), ("guidance_scale", 1.0)])
def test_parameters_that_the_model_does_not_accept_are_rejected(field, value):
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


def rich_request(**fields):
    return make_request(**{"prompt": "p", "seed": 5, **fields})


def test_the_input_images_determine_the_task_and_its_defaults():
    plain = RICH.resolve(rich_request())
    assert (plain.task, plain.strength, plain.scheduler) == ("text-to-image", None, "OwnScheduler")
    other = RICH.resolve(rich_request(inputs=["image"], scheduler="OtherScheduler"), (72, 50))
    assert (other.task, other.strength, other.scheduler) == ("image-to-image", 0.5, "OtherScheduler")
    assert (other.width, other.height) == (72, 48)
    assert RICH.resolve(rich_request(inputs=["image"], strength=0.25), (64, 64)).strength == 0.25


def test_the_quality_depends_on_the_output_format():
    assert [RICH.resolve(rich_request()).output_format, RICH.resolve(rich_request()).quality] == ["png", None]
    assert RICH.resolve(rich_request(output_format="webp")).quality == 90
    assert RICH.resolve(rich_request(output_format="jpeg", quality=5)).quality == 5


def test_extra_parameters_are_converted_to_the_types_of_the_pipeline():
    extra = {"clip_skip": 2, "target": [64, 32], "eta": 1}
    resolved_request = RICH.resolve(rich_request(extra=extra))
    assert resolved_request.extra == {"clip_skip": 2, "target": (64, 32), "eta": 1.0}
    assert isinstance(resolved_request.extra["eta"], float)
    assert resolved_request.parameters()["extra"] == resolved_request.extra
    assert RICH.resolve(rich_request(extra={"clip_skip": None})).extra == {"clip_skip": None}


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
def test_unsupported_requests_are_rejected_before_images_are_decoded(fields, words):
    with pytest.raises(InvalidRequestError) as caught:
        RICH.check(rich_request(**fields))
    assert words in caught.value.message


def test_a_model_that_requires_an_image_and_accepts_no_strength():
    with pytest.raises(
        InvalidRequestError, match="the model hints supports image-to-image, not text-to-image: got no"
    ):
        HINTS.check(rich_request())
    with pytest.raises(InvalidRequestError, match="strength: the model hints accepts none"):
        HINTS.check(rich_request(inputs=["image"], strength=0.5))
    with pytest.raises(InvalidRequestError, match="'X'; supported: none"):
        HINTS.check(rich_request(inputs=["image"], scheduler="X"))
    assert HINTS.resolve(rich_request(inputs=["image"]), (64, 64)).strength is None


@pytest.mark.parametrize(("steps", "enough"), [(steps, 1 / steps) for steps in range(1, 1001, 37)])
def test_the_minimum_strength_and_steps_of_the_error_message_are_accepted(steps, enough):
    with pytest.raises(InvalidRequestError) as caught:
        RICH.check(rich_request(inputs=["image"], strength=enough * 0.9, num_inference_steps=steps))
    stated = caught.value.message.split("at least ")[1].split(" is")[0]
    RICH.check(rich_request(inputs=["image"], strength=float(stated), num_inference_steps=steps))
    more = int(caught.value.message.split(" or ")[1].split(" steps")[0])
    if more <= 1000:
        RICH.check(rich_request(inputs=["image"], strength=enough * 0.9, num_inference_steps=more))


@pytest.mark.parametrize(
    "other",
    [
        {"task": "image-to-image"},
        {"strength": 0.5},
        {"scheduler": "Other"},
        {"extra": {"a": 1}},
    ],
)
def test_parameters_that_must_be_equal_in_a_call_are_part_of_the_batch_key(other):
    assert resolved().batch_key != resolved(**other).batch_key


def test_values_that_are_equal_in_python_only_have_different_batch_keys():
    assert len({resolved(extra={"a": value}).batch_key for value in (1, 1.0, True)}) == 3
    one, two = resolved(extra={"a": 1, "b": 2}), resolved(extra={"b": 2, "a": 1})
    assert one.batch_key == two.batch_key
    assert resolved(output_format="webp", quality=3).batch_key == resolved().batch_key, (
        "the output format is not part of the batch key"
    )


def test_different_images_share_a_batch_key_unless_they_condition_the_model():
    from PIL import Image

    images = [Image.new("RGB", (64, 64)) for _ in range(2)]
    started = [resolved(task="image-to-image", image=image, strength=0.5).batch_key for image in images]
    assert started[0] == started[1]
    hinted = [resolved(task="image-to-image", image=image).batch_key for image in images]
    assert hinted[0] != hinted[1]


# ---- parameters that are passed unchanged to the call -----------------------------------------------------


class NewRequest(GenerationRequest):
    """A request with a declared parameter that the worker has no code for."""

    rescale: float | None = None


@pytest.fixture
def rescaling(monkeypatch):
    """A model whose call accepts the new parameter, for one of its tasks."""
    info = ParameterInfo(label="Rescale", description="Factor of rescaling.")
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


def test_a_new_parameter_is_passed_reported_and_part_of_the_batch_key(rescaling):
    given, absent = (rescaling.resolve(NewRequest(prompt="p", seed=5, rescale=value)) for value in (0.75, None))
    assert (given.call_arguments()["rescale"], absent.call_arguments()["rescale"]) == (0.75, 0.25)
    assert (given.parameters()["rescale"], given.parameters_of(5)["rescale"]) == (0.75, 0.75)
    assert given.batch_key != absent.batch_key


def test_a_new_parameter_is_accepted_only_by_the_tasks_whose_call_has_it(rescaling):
    with pytest.raises(InvalidRequestError, match="rescale: the model m accepts none for image-to-image"):
        rescaling.check(NewRequest(prompt="p", seed=5, rescale=0.75, inputs=["image"]))
    assert "rescale" not in rescaling.resolve(NewRequest(prompt="p", seed=5, inputs=["image"]), (8, 8)).arguments
    assert rescaling.capabilities().parameters == {"rescale": AcceptedParameter(default=0.25)}


def test_the_result_reports_the_declared_parameters():
    found = RICH.resolve(rich_request(inputs=["image"], output_format="webp", extra={}), (64, 64)).parameters()
    assert found == {
        "task": "image-to-image", "seed": 5, "num_images": 1, "num_inference_steps": 4, "guidance_scale": 7.5,
        "width": 64, "height": 64, "strength": 0.5, "scheduler": "OwnScheduler", "output_format": "webp",
        "quality": 90,
    }  # fmt: skip


@pytest.mark.parametrize("strength", [1.0, 0.8, 0.3, 0.1, 1 / 3, 1 / 161, 0.001])
def test_the_minimum_steps_of_a_task_leave_one_step(strength):
    resolved_request = dataclasses.replace(RICH, tasks={"image-to-image": TaskCapabilities(strength=strength)})
    least = resolved_request.least_steps("image-to-image")
    resolved_request.check(rich_request(inputs=["image"], num_inference_steps=least))
    assert int(strength * (least - 1)) < 1

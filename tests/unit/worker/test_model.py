"""From a request to what is made: defaults, and a word on everything that can't be."""

import dataclasses

import pytest

from imagegen_protocol import GenerationRequest, InvalidRequestError
from imagegen_protocol.request import make_request
from tests.unit.worker.bench import MODEL

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
    model = dataclasses.replace(MODEL, takes_loras=True)
    made = model.resolve(make_request(prompt="p", seed=5, loras=[{"name": "b", "scale": -2}, {"name": "a"}]))
    assert made.loras == (("a", 1.0), ("b", -2.0))
    assert made.parameters()["loras"] == [{"name": "a", "scale": 1.0}, {"name": "b", "scale": -2.0}]
    same = model.resolve(make_request(prompt="q", seed=6, loras=[{"name": "a"}, {"name": "b", "scale": -2}]))
    other = model.resolve(make_request(prompt="q", seed=6, loras=[{"name": "a"}]))
    assert made.batch_key == same.batch_key
    assert len({made.batch_key, other.batch_key, model.resolve(request()).batch_key}) == 3


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
        (dataclasses.replace(MODEL, max_side=510), 509, ["509", "multiples of 8", "504 would be right"]),
    ],
)
def test_a_wrong_side_is_told_with_field_value_and_range(field, model, side, words):
    with pytest.raises(InvalidRequestError) as caught:
        model.resolve(request(**{field: side}))
    for word in [field, *words]:
        assert word in caught.value.message


@pytest.mark.parametrize(("field", "value"), [("negative_prompt", "n"), ("guidance_scale", 1.0)])
def test_what_a_model_does_not_take_is_told(field, value):
    with pytest.raises(InvalidRequestError, match=f"{field}: the model plain takes none"):
        PLAIN.resolve(request(**{field: value}))

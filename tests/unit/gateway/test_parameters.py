"""The parameters of a model, within its ranges and the limits of the key."""

from imagegen_gateway.core.limits import UNLIMITED, Limits
from imagegen_gateway.core.parameters import parameters
from imagegen_protocol.capabilities import ModelCapabilities


def model(**fields):
    given = {"width": 512, "height": 768, "num_inference_steps": 20, "tasks": {"text-to-image": None}, **fields}
    return ModelCapabilities(**given)


def test_a_model_with_few_parameters():
    found = parameters(model(size_multiple=16, max_side=1000), UNLIMITED)
    assert found["width"] == {"default": 512, "minimum": 16, "maximum": 992, "multiple_of": 16}
    assert found["height"]["default"] == 768
    assert found["num_inference_steps"] == {"default": 20, "minimum": 1, "maximum": 1000}
    assert set(found) == {"width", "height", "num_inference_steps", "n", "output_format"}


def test_a_model_with_all_parameters():
    found = parameters(
        model(
            guidance_scale=0.0,
            negative_prompt=True,
            tasks={"text-to-image": None, "image-to-image": 0.8, "inpainting": 1.0},
            schedulers=["B", "A"],
            loras=[],
        ),
        UNLIMITED,
    )
    assert found["guidance_scale"] == {"default": 0.0, "minimum": 0, "maximum": 100}
    assert found["scheduler"] == {"default": "B", "enum": ["B", "A"]}
    assert found["strength"] == {"default": 0.8, "exclusive_minimum": 0, "maximum": 1}
    assert found["loras"] == {"max_items": 8, "enum": []}
    assert {"negative_prompt", "image", "mask"} <= set(found)


def test_image_input_without_strength():
    found = parameters(model(tasks={"image-to-image": None}), UNLIMITED)
    assert "image" in found
    assert not {"strength", "mask"} & set(found)


def test_the_limits_of_the_key_apply():
    limits = Limits(max_width=100, max_height=4096, max_steps=8)
    found = parameters(model(size_multiple=8, max_side=1024), limits)
    assert found["width"]["maximum"] == 96
    assert found["height"]["maximum"] == 1024
    assert found["num_inference_steps"]["maximum"] == 8

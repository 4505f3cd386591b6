"""Portrait, landscape and square images of prompts of very different lengths, in one run, are those made alone."""

import pytest

from tests.integration.continuous.helpers import TOLERANCE, difference, run, settled, stock

# diffusers' schedulers make numpy arrays of tensors in a way that numpy 2 tells it not to.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SQUARE, PORTRAIT, LANDSCAPE = (64, 64), (64, 128), (128, 64)
"""Width and height. The last two have equally many tokens."""
ONE_TOKEN, USUAL, LONG = "a", "two trees by the sea", "a long dog in the rain, at night, " * 12


def request(family, size, prompt, *, steps=2, negative=None, guidance=0):
    arguments = dict(family.arguments, prompt=prompt, num_inference_steps=steps)
    if "height" in arguments:
        arguments |= {"width": size[0], "height": size[1]}
    for name in {"image", "mask_image"} & set(arguments):
        arguments[name] = arguments[name].resize(size)
    if family.guidances:
        arguments["guidance_scale"] = family.guidances[guidance]
    if negative is not None and family.negative_prompt:
        arguments["negative_prompt"] = negative
    return arguments


def mixed(family):
    return [
        request(family, PORTRAIT, LONG),
        request(family, PORTRAIT, ONE_TOKEN, guidance=1),
        request(family, LANDSCAPE, LONG, negative=ONE_TOKEN),
        request(family, LANDSCAPE, USUAL, steps=3),
        request(family, SQUARE, ONE_TOKEN, negative=LONG),
        request(family, SQUARE, LONG, steps=3),
    ]


def test_each_image_equals_the_one_generated_alone(any_family, make_batcher):
    calls = mixed(any_family)
    expected = [stock(any_family.pipeline, call, seed) for seed, call in enumerate(calls)]
    batcher = make_batcher(any_family.pipeline)
    settled(batcher, any_family)
    # Two portraits first: what is learned of them must not be taken for granted of a landscape image.
    for task, image in zip(run(batcher, calls[:2]), expected, strict=False):
        assert difference(task, image) <= TOLERANCE
    for task, image in zip(run(batcher, calls), expected, strict=True):
        assert difference(task, image) <= TOLERANCE

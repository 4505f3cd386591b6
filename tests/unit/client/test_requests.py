"""Keyword arguments become a header and a body, or an error that says what is wrong."""

import math

import pytest

from imagegen_client.requests import build
from imagegen_protocol import InvalidRequestError, parse_request
from imagegen_protocol.limits import MAX_SEED


def made(prompt="a red circle", **options):
    return build(prompt, options, request_id=b"k" * 16, seed=7, progress=False)


def test_options_go_where_they_belong():
    submit, seed, body = made(
        model="m", priority=-3, timeout_seconds=2, num_inference_steps=4, guidance_scale=2, width=64, height=32,
        num_images=2, negative_prompt="blur", seed=5,
    )  # fmt: skip
    assert (submit.request_id, submit.model, submit.priority, submit.timeout_seconds) == (b"k" * 16, "m", -3, 2.0)
    request = parse_request(body)
    assert (seed, request.seed) == (5, 5)
    assert (request.num_inference_steps, request.guidance_scale, request.num_images) == (4, 2.0, 2)
    assert (request.width, request.height, request.negative_prompt) == (64, 32, "blur")


def test_none_is_as_good_as_absent():
    plain, _, body = made()
    names = ("seed", "model", "priority", "timeout_seconds", "width", "num_images", "negative_prompt")
    submit, seed, same = made(**dict.fromkeys(names))
    assert (submit, same) == (plain, body)
    assert seed == 7, "the one made beforehand"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("seed", -1, ">= 0"),
        ("seed", MAX_SEED + 1, "9223372036854775807"),
        ("num_inference_steps", 0, ">= 1"),
        ("num_inference_steps", 1001, "<= 1000"),
        ("num_inference_steps", 2.5, "int"),
        ("guidance_scale", -0.5, ">= 0"),
        ("guidance_scale", 100.5, "<= 100"),
        ("guidance_scale", math.nan, "float"),
        ("width", 7, ">= 8"),
        ("height", 8193, "<= 8192"),
        ("width", "wide", "int"),
        ("num_images", 0, ">= 1"),
        ("num_images", 17, "<= 16"),
        ("negative_prompt", 5, "str"),
        ("negative_prompt", "x" * 10_001, "10000"),
        ("priority", 101, "<= 100"),
        ("priority", -101, ">= -100"),
        ("timeout_seconds", 0, "> 0"),
        ("timeout_seconds", -1.0, "> 0"),
        ("timeout_seconds", 8 * 24 * 3600, "604800"),
        ("timeout_seconds", math.inf, "604800"),
        ("timeout_seconds", math.nan, "float"),
        ("model", "", "length >= 1"),
        ("model", "x" * 129, "length <= 128"),
        ("model", "two\nlines", "regex"),
    ],
)
def test_a_wrong_value_is_named_with_its_range(field, value, words):
    with pytest.raises(InvalidRequestError) as caught:
        made(**{field: value})
    message = str(caught.value)
    assert message.startswith(f"{field}: expected")
    assert words in message
    assert repr(value)[:40] in message
    assert len(message) < 400


@pytest.mark.parametrize("prompt", [None, 5, b"bytes", "x" * 10_001])
def test_a_wrong_prompt_is_named(prompt):
    with pytest.raises(InvalidRequestError, match=r"^prompt: expected `str`") as caught:
        made(prompt)
    assert len(str(caught.value)) < 400


def test_an_unknown_option_is_answered_with_the_known_ones():
    with pytest.raises(InvalidRequestError, match="step_count") as caught:
        made(step_count=3)
    assert "num_inference_steps" in str(caught.value)

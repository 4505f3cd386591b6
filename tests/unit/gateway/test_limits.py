"""The limits of API keys."""

import pytest

from imagegen_gateway.core.limits import (
    UNLIMITED,
    Limits,
    TokenBucket,
    find_violation,
    with_defaults,
    within_limits,
)
from imagegen_protocol.capabilities import ModelCapabilities


def test_a_key_without_limits_is_limited_in_priority_only():
    options = {"num_inference_steps": 1000, "width": 8192, "height": 8192, "model": "m", "priority": 0}
    assert find_violation(Limits(), options) is None
    found = find_violation(Limits(), {"priority": 1})
    assert (found.field, found.message) == ("priority", "priority: the maximum of this key is 0, got 1")
    assert find_violation(UNLIMITED, {"priority": 100}) is None


@pytest.mark.parametrize(
    ("limits", "allowed", "beyond", "field"),
    [
        (Limits(max_steps=4), {"num_inference_steps": 4}, {"num_inference_steps": 5}, "num_inference_steps"),
        (Limits(max_width=64), {"width": 64, "height": 65}, {"width": 65, "height": 64}, "size"),
        (Limits(max_height=64), {"width": 65, "height": 64}, {"width": 64, "height": 65}, "size"),
        (Limits(models=("a", "b")), {"model": "b"}, {"model": "c"}, "model"),
        (Limits(priority=-3), {"priority": -3}, {"priority": -2}, "priority"),
    ],
)
def test_the_first_field_beyond_the_limits_is_found(limits, allowed, beyond, field):
    assert find_violation(limits, allowed) is None
    assert find_violation(limits, beyond).field == field
    assert find_violation(limits, {}) is None


def test_the_defaults_of_a_key_apply_to_absent_options():
    assert with_defaults(Limits(models=("a", "b"), priority=7), {"width": 8}) == {
        "model": "a",
        "priority": 7,
        "width": 8,
    }
    assert with_defaults(Limits(models=("a", "b"), priority=7), {"model": "b", "priority": 1}) == {
        "model": "b",
        "priority": 1,
    }
    assert with_defaults(UNLIMITED, {}) == {"priority": 0}, "the maximum priority is not the default"


def test_limits_survive_a_round_trip_through_json():
    limits = Limits(requests_per_minute=1.5, models=("a",), max_in_flight=3, priority=-1)
    stored = {**limits.as_json(), "models": ["a"], "of a later version": 1}
    assert Limits.from_json(stored) == limits


def test_the_bucket_holds_one_minutes_worth_and_refills():
    bucket = TokenBucket(3)
    assert [bucket.take(100.0) for _ in range(3)] == [0, 0, 0]
    assert bucket.take(100.0) == pytest.approx(20)
    assert bucket.take(110.0) == pytest.approx(10)
    assert bucket.take(120.0) == 0
    assert bucket.take(120.0) == pytest.approx(20)
    assert [bucket.take(9999.0) for _ in range(4)] == [0, 0, 0, pytest.approx(20)]


def test_rates_below_one_per_minute_are_possible():
    bucket = TokenBucket(0.5)
    assert bucket.take(0.0) == 0
    assert bucket.take(0.0) == pytest.approx(120)
    assert bucket.take(120.0) == 0


def test_charged_tokens_are_paid_before_the_next_one_is_taken():
    bucket = TokenBucket(6)
    assert bucket.take(0.0) == 0
    bucket.charge(9)
    assert (bucket.remaining, bucket.reset_seconds) == (-4, pytest.approx(100))
    assert bucket.take(0.0) == pytest.approx(50)
    assert bucket.take(50.0) == 0


MODEL = ModelCapabilities(
    width=512, height=768, num_inference_steps=20, size_multiple=64, tasks={"text-to-image": None}
)


@pytest.mark.parametrize(
    ("limits", "options", "image", "expected"),
    [
        (Limits(), {}, None, {}),
        (UNLIMITED, {}, (8192, 8192), {}),
        (Limits(max_steps=20, max_width=512), {}, None, {}),
        (Limits(max_steps=19), {}, None, {"num_inference_steps": 19}),
        (Limits(max_steps=19), {"num_inference_steps": 4}, None, {"num_inference_steps": 4}),
        (Limits(max_height=400), {}, None, {"width": 256, "height": 384}),
        (Limits(max_height=400), {"width": 128, "height": 64}, (900, 900), {"width": 128, "height": 64}),
        (Limits(max_height=400), {"width": 512}, None, {"width": 512, "height": 384}),
        (Limits(max_width=200, max_height=400), {}, (400, 300), {"width": 192, "height": 128}),
        (Limits(max_width=10), {}, None, {"width": 64, "height": 64}),
    ],
)
def test_defaults_are_lowered_to_the_limits(limits, options, image, expected):
    assert within_limits(limits, options, MODEL, image) == expected


def test_the_defaults_of_an_unknown_model_are_not_limited_but_input_images_are():
    limits = Limits(max_steps=1, max_width=100)
    assert within_limits(limits, {}, None) == {}
    assert within_limits(limits, {}, None, (400, 200)) == {"width": 96, "height": 48}

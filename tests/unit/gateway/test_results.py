"""Checks of workers' answers."""

from types import SimpleNamespace

import pytest

from imagegen_client import ImagegenError
from imagegen_gateway.results import check_result, finite


def answer(formats=("png",), sizes=((64, 64),), seeds=(1,), images=1):
    return SimpleNamespace(formats=list(formats), sizes=list(sizes), seeds=list(seeds), encoded=[b"x"] * images)


def test_a_valid_answer_is_returned():
    result = answer()
    assert check_result(result, {}) is result


@pytest.mark.parametrize(
    ("result", "options", "message"),
    [
        (answer(formats=["html"]), {}, "unknown image format 'html'"),
        (answer(formats=["x" * 1000]), {}, "unknown image format 'xxxxxxxxxxxxxxxxxxxx'$"),
        (answer(images=60), {}, "expected 1 images, got 60"),
        (answer(), {"num_images": 2}, "expected 2 images, got 1"),
        (answer(images=0, formats=[], sizes=[], seeds=[]), {}, "expected 1 images, got 0"),
        (answer(seeds=[]), {}, "expected 1 images"),
        (answer(sizes=[(0, 64)]), {}, "expected sides of 1 to 8192 pixels, got 0"),
        (answer(sizes=[(64, 10**9)]), {}, "expected sides of 1 to 8192 pixels, got 1000000000"),
    ],
)
def test_an_invalid_answer_fails_the_request(result, options, message):
    with pytest.raises(ImagegenError, match=message):
        check_result(result, options)


def test_numbers_that_json_can_not_express_are_none():
    assert [finite(number) for number in (1.5, None, float("nan"), float("inf"))] == [1.5, None, None, None]

"""The judge of a soak accepts the right answers and no others."""

import io
import random

import pytest
from PIL import Image

from benchmarks.soak.requests import SIMULATED, Ask, Judge, WrongError, choose, drawn
from imagegen_client import GenerationResult
from imagegen_protocol.messages import ImageInfo, Result


def answer(options, pictures, **other):
    """What a worker called w would answer."""
    frames, infos = [], []
    for number, picture in enumerate(pictures):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        frames.append(buffer.getvalue())
        seed = options["seed"] + number
        infos.append(ImageInfo(format="png", width=picture.width, height=picture.height, seed=seed))
    told = {"request_id": bytes(16), "worker": "w", "model": options["model"], "images": infos, **other}
    return GenerationResult(Result(**told), frames, 0.1)


@pytest.fixture
def options():
    return {"prompt": "soak", "seed": 7, "model": SIMULATED, "width": 64, "height": 96, "num_images": 2}


@pytest.fixture
def pictures(options):
    return [drawn(options, number, "w", (64, 96)) for number in range(2)]


def test_the_right_pictures_are_right(options, pictures):
    Judge().check(Ask("plain", options), answer(options, pictures))


WRONG = {
    "in another order": lambda options, pictures: answer(options, pictures[::-1]),
    "one is missing": lambda options, pictures: answer(options, pictures[:1]),
    "by another worker": lambda options, pictures: answer(options, pictures, worker="v"),
    "of another model": lambda options, pictures: answer(options, pictures, model="builtin:shapes"),
    "of another size": lambda options, pictures: answer(options, [each.resize((96, 64)) for each in pictures]),
}


@pytest.mark.parametrize("how", WRONG)
def test_others_are_wrong(how, options, pictures):
    with pytest.raises(WrongError):
        Judge().check(Ask("plain", options), WRONG[how](options, pictures))


def test_a_real_model_must_draw_the_same_each_time():
    options = {"prompt": "a star", "seed": 1, "model": "builtin:shapes"}
    ask, judge = Ask("shapes", options), Judge()
    first = Image.new("RGB", (64, 64), (100, 100, 100))
    judge.check(ask, answer(options, [first]))
    judge.check(ask, answer(options, [Image.new("RGB", (64, 64), (101, 99, 100))]))
    with pytest.raises(WrongError, match="differs by 50"):
        judge.check(ask, answer(options, [Image.new("RGB", (64, 64), (150, 100, 100))]))


def test_what_must_fail_may_not_be_answered(options, pictures):
    with pytest.raises(WrongError):
        Judge().check(Ask("bad", options, must_fail=True), answer(options, pictures))


def test_all_kinds_come_up():
    source = random.Random(1)
    kinds = {choose(source).kind for _ in range(500)}
    assert len(kinds) == 10

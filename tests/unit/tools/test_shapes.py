"""The drawings and the eye that grades them: the grader must be right about true pictures before it judges any."""

import random

import numpy as np
import pytest
from PIL import Image

from tools.shapes import drawing, grade


def test_the_eye_reads_true_drawings():
    assert grade.measure_accuracy(300) >= 0.99


@pytest.mark.parametrize("shape", drawing.SHAPES)
def test_every_shape_is_seen_at_other_sizes_and_places(shape):
    for spec in (drawing.Spec(shape, "red", "white"), drawing.Spec(shape, "cyan", "black", 0.45, 0.54, 0.28)):
        seen = grade.measure(drawing.draw(spec, 96))
        assert (seen.shape, seen.foreground, seen.background) == (shape, spec.foreground, spec.background)


def test_the_eye_is_not_polite():
    flat = Image.new("RGB", (64, 64), drawing.COLOURS["blue"])
    assert grade.measure(flat).shape == grade.UNCLEAR
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert grade.measure(Image.fromarray(noise)).shape == grade.UNCLEAR
    wrong = drawing.draw(drawing.Spec("star", "red", "white"))
    assert grade.measure(wrong).shape != "circle"


def test_the_plain_caption_names_all_three():
    spec = drawing.Spec("star", "orange", "blue")
    assert drawing.plain_caption(spec) == "an orange star on a blue background"


def test_training_never_sees_what_is_held_out():
    rng = random.Random(3)
    for _ in range(2000):
        spec = drawing.random_spec(rng)
        assert not drawing.held_out(spec.shape, spec.foreground, spec.background)
    held = [c for c in drawing.combinations() if drawing.held_out(*c)]
    assert 0.05 < len(held) / len(drawing.combinations()) < 0.2


def test_grading_asks_for_trained_and_held_out_combinations_alike():
    specs = grade.grading_specs(48)
    held = [drawing.held_out(s.shape, s.foreground, s.background) for s in specs]
    assert 20 <= sum(held) <= 28
    assert {s.shape for s in specs} == set(drawing.SHAPES)

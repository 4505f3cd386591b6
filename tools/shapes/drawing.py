"""Drawings and captions for training: one plain shape on a plain background.

Lengths are fractions of the image's side, so the same `Spec` can be drawn at any size.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

SIZE = 64
"""Side of a training image in pixels."""

SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "ring", "star", "cross")

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 32, 36),
    "green": (32, 150, 56),
    "blue": (34, 66, 214),
    "yellow": (252, 226, 40),
    "orange": (250, 130, 16),
    "purple": (118, 36, 160),
    "cyan": (40, 212, 226),
    "pink": (252, 136, 196),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
}
"""RGB values (0 to 255) by colour name."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    "circle": ("disc", "dot"),
    "square": ("box",),
    "triangle": ("pyramid",),
    "ring": ("donut", "hoop"),
    "star": ("five pointed star",),
    "cross": ("plus", "plus sign"),
}

_FULL = (
    "{a_fg} {fg} {shape} on {a_bg} {bg} background",
    "{fg} {shape} on {a_bg} {bg} background",
    "{a_fg} {fg} {shape} on {bg}",
    "{fg} {shape} on {bg}",
    "{fg} {shape}, {bg} background",
    "{a_fg} {fg} {shape} in front of {a_bg} {bg} background",
    "{a_bg} {bg} background with {a_fg} {fg} {shape}",
    "a picture of {a_fg} {fg} {shape} on {a_bg} {bg} background",
    "a drawing of {a_fg} {fg} {shape} on {bg}",
    "draw {a_fg} {fg} {shape} on {a_bg} {bg} background please",
)
_PARTIAL = (
    "{a_fg} {fg} {shape}",
    "{fg} {shape}",
    "a {shape} on {a_bg} {bg} background",
    "a {shape}",
    "the {shape} is {fg}",
)
_SMALL, _LARGE = 0.29, 0.36  # radii below and above which a shape may be called small or large
_OVERSAMPLING = 4  # factor by which an image is drawn larger and then averaged down


@dataclass(frozen=True)
class Spec:
    """An image: names of shape and colours, and centre (x, y) and radius as fractions of the side."""

    shape: str
    foreground: str
    background: str
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.34


def held_out(shape: str, foreground: str, background: str) -> bool:
    """Return whether this combination (about one in ten) is excluded from training, for grading."""
    names = list(COLOURS)
    place = SHAPES.index(shape) + 2 * names.index(foreground) + 3 * names.index(background)
    return place % 10 == 0


def combinations() -> list[tuple[str, str, str]]:
    """Return all 540 combinations of (shape, foreground, background) with different colours."""
    return [(s, f, b) for s in SHAPES for f in COLOURS for b in COLOURS if f != b]


def random_spec(rng: random.Random, training: bool = True) -> Spec:
    """Return a random image; with `training`, none of the held-out combinations."""
    while True:
        shape = rng.choice(SHAPES)
        foreground, background = rng.sample(list(COLOURS), 2)
        if not (training and held_out(shape, foreground, background)):
            break
    radius = rng.uniform(0.26, 0.40)
    room = min(0.07, 0.47 - radius)
    x, y = 0.5 + rng.uniform(-room, room), 0.5 + rng.uniform(-room, room)
    return Spec(shape, foreground, background, x, y, radius)


def _polygon(shape: str, x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Return the corners of a shape with straight sides, in the units of x, y and r."""
    if shape == "square":
        h = 0.86 * r
        return [(x - h, y - h), (x + h, y - h), (x + h, y + h), (x - h, y + h)]
    if shape == "triangle":
        return [(x, y - 0.92 * r), (x + r, y + 0.82 * r), (x - r, y + 0.82 * r)]
    if shape == "star":
        points = []
        for k in range(10):
            reach = 1.06 * r if k % 2 == 0 else 0.43 * r
            angle = math.pi * k / 5
            points.append((x + reach * math.sin(angle), y - reach * math.cos(angle)))
        return points
    if shape == "cross":
        a = r / 3
        steps = [(-a, -r), (a, -r), (a, -a), (r, -a), (r, a), (a, a)]
        steps += [(a, r), (-a, r), (-a, a), (-r, a), (-r, -a), (-a, -a)]
        return [(x + dx, y + dy) for dx, dy in steps]
    raise ValueError(f"expected a shape with corners, got {shape!r}")


def draw_mask(spec: Spec, size: int = SIZE) -> Image.Image:
    """Return the coverage of each pixel by the shape, as an `L` image of `size` x `size` (0 to 255)."""
    side = size * _OVERSAMPLING
    image = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(image)
    x, y, r = spec.x * side, spec.y * side, spec.radius * side
    if spec.shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        if spec.shape == "ring":
            hole = 0.56 * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
    else:
        pen.polygon(_polygon(spec.shape, x, y, r), fill=255)
    return image.reduce(_OVERSAMPLING)


def draw(spec: Spec, size: int = SIZE) -> Image.Image:
    """Return the anti-aliased `RGB` image of `size` x `size` pixels."""
    picture = Image.new("RGB", (size, size), COLOURS[spec.background])
    picture.paste(COLOURS[spec.foreground], (0, 0), draw_mask(spec, size))
    return picture


def draw_array(spec: Spec, size: int = SIZE) -> NDArray[np.uint8]:
    """Return the image as an array (size, size, 3) of values 0 to 255."""
    return np.asarray(draw(spec, size), dtype=np.uint8)


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def plain_caption(spec: Spec) -> str:
    """Return the standard caption, such as 'a red circle on a blue background'."""
    return _FULL[0].format(
        fg=spec.foreground,
        bg=spec.background,
        shape=spec.shape,
        a_fg=_article(spec.foreground),
        a_bg=_article(spec.background),
    )


def _junk(rng: random.Random) -> str:
    """Return one to three invented words, which make the model robust against unknown words."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789äéß好ж"
    return " ".join("".join(rng.choices(letters, k=rng.randint(2, 6))) for _ in range(rng.randint(1, 3)))


def caption(spec: Spec, rng: random.Random) -> str:
    """Return a random caption; some omit a colour, state the size or contain meaningless words."""
    if rng.random() < 0.35:
        return plain_caption(spec)
    pattern = rng.choice(_PARTIAL if rng.random() < 0.12 else _FULL)
    shape = rng.choice(SYNONYMS[spec.shape]) if rng.random() < 0.1 else spec.shape
    foreground = spec.foreground
    if rng.random() < 0.15 and (spec.radius < _SMALL or spec.radius > _LARGE):
        foreground = f"{'small' if spec.radius < _SMALL else 'large'} {foreground}"
    text = pattern.format(
        fg=foreground,
        bg=spec.background,
        shape=shape,
        a_fg=_article(foreground),
        a_bg=_article(spec.background),
    )
    if rng.random() < 0.06:
        junk = _junk(rng)
        text = f"{text}, {junk}" if rng.random() < 0.5 else f"{junk} {text}"
    return text

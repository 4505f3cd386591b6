"""Measurement of images of one shape, and grading of a text-to-image pipeline with it.

    python -m tools.shapes.grade DIR --sheet sheet.png

`measure` needs only numpy and Pillow; grading a pipeline imports torch and diffusers.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tools.shapes import drawing
from tools.sheet import contact_sheet

UNCLEAR = "unclear"
"""Result of `measure` if there is no shape, or none that resembles one of the six."""

_GRID = 32  # side, in cells, to which a shape is scaled before it is compared
_LEAST_CONTRAST = 60.0  # RGB distance below which nothing stands out from the background
_LEAST_OVERLAP = 0.80  # intersection over union below which a shape is like none of the six

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """Measured colours and shape of an image, and the overlap with the ideal shape (0 to 1)."""

    foreground: str
    background: str
    shape: str
    overlap: float


@dataclass(frozen=True)
class Grade:
    """Fractions of correct images (0 to 1); `unseen` is the fraction among untrained combinations."""

    colours: float
    shapes: float
    both: float
    unseen: float
    seconds: float
    specs: tuple[drawing.Spec, ...]
    images: tuple[Image.Image, ...]
    measured: tuple[Measured, ...]


def colour_name(rgb: Floats) -> str:
    """Return the named colour nearest to (3,) RGB values of 0 to 255."""
    return min(drawing.COLOURS, key=lambda name: float(np.linalg.norm(rgb - np.array(drawing.COLOURS[name]))))


def _scaled_shape(cover: Floats) -> Mask | None:
    """Return the coverage (height, width) cropped to the shape and scaled to (32, 32); None without a shape."""
    solid = cover >= 0.5
    rows, columns = np.flatnonzero(solid.sum(1) > 0), np.flatnonzero(solid.sum(0) > 0)
    if len(rows) < 8 or len(columns) < 8:
        return None
    height, width = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
    if not 0.7 < width / height < 1.43:
        return None
    part = cover[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    image = Image.fromarray((part.clip(0, 1) * 255).astype(np.uint8))
    return np.asarray(image.resize((_GRID, _GRID), Image.Resampling.BILINEAR)) >= 128


@functools.cache
def _ideal_shapes() -> dict[str, Mask]:
    """Return the ideal mask of each shape, cropped and scaled by `_scaled_shape`."""
    ideal: dict[str, Mask] = {}
    for shape in drawing.SHAPES:
        cover = np.asarray(drawing.draw_mask(drawing.Spec(shape, "red", "blue", radius=0.4), 128)) / 255.0
        mask = _scaled_shape(cover)
        if mask is None:
            raise RuntimeError(f"the ideal {shape} cannot be measured")
        ideal[shape] = mask
    return ideal


def measure(image: Image.Image) -> Measured:
    """Return the two colours and the shape of an image of any size.

    The background is the median of the border, the foreground the median of the pixels farthest
    from it in colour. The shape is the ideal one that its outline, scaled to a square, overlaps most.
    """
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    edge = max(1, min(pixels.shape[:2]) // 32)
    inner = np.zeros(pixels.shape[:2], dtype=bool)
    inner[edge:-edge, edge:-edge] = True
    ground = np.median(pixels[~inner], axis=0)
    contrast = np.linalg.norm(pixels - ground, axis=2)
    strongest = float(np.percentile(contrast, 96))
    background = colour_name(ground)
    if strongest < _LEAST_CONTRAST:
        return Measured(background, background, UNCLEAR, 0.0)
    figure = np.median(pixels[contrast >= 0.8 * strongest], axis=0)
    axis = figure - ground
    mask = _scaled_shape((pixels - ground) @ axis / float(axis @ axis))
    if mask is None:
        return Measured(colour_name(figure), background, UNCLEAR, 0.0)
    overlaps = {
        name: float((mask & ideal).sum() / (mask | ideal).sum()) for name, ideal in _ideal_shapes().items()
    }
    best = max(overlaps, key=lambda name: overlaps[name])
    shape = best if overlaps[best] >= _LEAST_OVERLAP else UNCLEAR
    return Measured(colour_name(figure), background, shape, overlaps[best])


def measure_accuracy(count: int = 600, seed: int = 0) -> float:
    """Return the fraction of `count` drawings that `measure` recognises correctly."""
    rng = random.Random(seed)
    right = 0
    for _ in range(count):
        spec = drawing.random_spec(rng, training=False)
        seen = measure(drawing.draw(spec))
        right += (seen.foreground, seen.background, seen.shape) == (
            spec.foreground,
            spec.background,
            spec.shape,
        )
    return right / count


def grading_specs(count: int, seed: int = 0) -> list[drawing.Spec]:
    """Return combinations for grading: half trained, half held out as far as available, shapes in turn."""
    rng = random.Random(seed)
    every = drawing.combinations()
    rng.shuffle(every)
    queues = {
        (shape, out): [drawing.Spec(*c) for c in every if c[0] == shape and drawing.held_out(*c) == out]
        for shape in drawing.SHAPES
        for out in (False, True)
    }
    specs: list[drawing.Spec] = []
    turn = 0
    while len(specs) < min(count, len(every)):
        shape = drawing.SHAPES[turn % len(drawing.SHAPES)]
        out = (turn // len(drawing.SHAPES)) % 2 == 1
        queue = queues[shape, out] or queues[shape, not out]
        if queue:
            specs.append(queue.pop())
        turn += 1
    return specs


def grade(
    pipeline: Any,
    count: int = 120,
    steps: int = 20,
    guidance: float = 2.0,
    seed: int = 0,
    batch: int = 12,
) -> Grade:
    """Generate `count` images with a diffusers pipeline, image i with `seed` + i, and measure them."""
    import torch

    specs = grading_specs(count, seed)
    images: list[Image.Image] = []
    begun = time.perf_counter()
    for at in range(0, len(specs), batch):
        part = specs[at : at + batch]
        made = pipeline(
            [drawing.plain_caption(spec) for spec in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            width=drawing.SIZE,
            height=drawing.SIZE,
            generator=[torch.Generator().manual_seed(seed + at + k) for k in range(len(part))],
        )
        images.extend(made.images)
    seconds = time.perf_counter() - begun
    measured = [measure(image) for image in images]
    pairs = list(zip(specs, measured, strict=True))
    colours = [(s.foreground, s.background) == (m.foreground, m.background) for s, m in pairs]
    shapes = [s.shape == m.shape for s, m in pairs]
    both = [c and s for c, s in zip(colours, shapes, strict=True)]
    unseen = [
        right
        for right, s in zip(both, specs, strict=True)
        if drawing.held_out(s.shape, s.foreground, s.background)
    ]
    return Grade(
        colours=sum(colours) / len(pairs),
        shapes=sum(shapes) / len(pairs),
        both=sum(both) / len(pairs),
        unseen=sum(unseen) / max(1, len(unseen)),
        seconds=seconds,
        specs=tuple(specs),
        images=tuple(images),
        measured=tuple(measured),
    )


def sheet_of(result: Grade, limit: int = 48) -> Image.Image:
    """Return a contact sheet of the first `limit` images with their prompts and errors."""
    labels = []
    for spec, seen in list(zip(result.specs, result.measured, strict=True))[:limit]:
        wrong = [
            have
            for want, have in (
                (spec.foreground, seen.foreground),
                (spec.shape, seen.shape),
                (spec.background, seen.background),
            )
            if want != have
        ]
        below = f"on {spec.background}" + (f"  ({', '.join(wrong)}?)" if wrong else "")
        labels.append(f"{spec.foreground} {spec.shape}\n{below}")
    return contact_sheet(result.images[:limit], labels)


def load(folder: Path) -> Any:
    """Return the pipeline in a folder, in float32 on the CPU, without progress bar."""
    import torch
    from diffusers import DiffusionPipeline

    kind: Any = DiffusionPipeline
    pipeline = kind.from_pretrained(str(folder), dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def main() -> None:
    """Grade the pipeline in a folder and print the figures."""
    parser = argparse.ArgumentParser(description="Grade a pipeline for images of shapes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sheet", type=Path, help="contact sheet to write")
    parser.add_argument("--count", type=int, default=120)
    parser.add_argument("--steps", type=int, help="number of the folder's imagegen.json by default")
    parser.add_argument("--guidance", type=float, help="number of the folder's imagegen.json by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    defaults = json.loads((args.folder / "imagegen.json").read_text())
    steps = args.steps or defaults["num_inference_steps"]
    guidance = defaults["guidance_scale"] if args.guidance is None else args.guidance
    print(f"measure() on true drawings: {measure_accuracy():.1%} right")
    result = grade(load(args.folder), args.count, steps, guidance, args.seed)
    print(f"{len(result.specs)} prompts, {steps} steps, guidance {guidance}, {result.seconds:.1f} s")
    print(f"colours right {result.colours:.1%}, shapes right {result.shapes:.1%}, both {result.both:.1%}")
    print(f"both right where the combination was kept out of training: {result.unseen:.1%}")
    if args.sheet is not None:
        sheet_of(result).save(args.sheet, optimize=True)


if __name__ == "__main__":
    main()

"""Kinds of requests that a soak mixes, and what must come of each."""

import io
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from PIL import Image, ImageChops

from imagegen_client import GenerationResult
from imagegen_worker.backends import Row
from imagegen_worker.backends.simulated import draw
from imagegen_worker.core.model import ResolvedRequest

SIMULATED = "simulated"
SHAPES = "builtin:shapes"
SHAPES_TOLERANCE = 2
"""Of 255: company changes the last bits of a real model's images."""


class WrongError(Exception):
    """An answer that is not the one that was asked for; the message says how."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: the arguments of `submit`, and how it may end beside in its images."""

    kind: str
    options: dict[str, Any]
    ends: frozenset[str] = frozenset()
    """Codes of errors that are right; with `must_fail` one of them must come."""
    must_fail: bool = False
    cancel_after: float | None = None
    """Seconds."""
    follow: bool = False
    """Read the signs of progress, previews among them."""


def _plain(source: random.Random) -> Ask:
    width, height = (source.choice((64, 96, 128, 256, 384, 512)) for _ in range(2))
    return Ask("plain", _simulated(source, width=width, height=height, num_images=source.choice((1, 1, 1, 2, 4))))


def _formats(source: random.Random) -> Ask:
    options = _simulated(source, width=128, height=128, output_format=source.choice(("jpeg", "webp")), quality=80)
    return Ask("format", options | {"priority": source.randint(-5, 5), "negative_prompt": "blurred"})


def _shapes(source: random.Random) -> Ask:
    # Few different ones, so that each is made many times and must look the same each time.
    seed = source.randrange(4)
    options: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": seed, "model": SHAPES}
    return Ask("shapes", options | {"num_inference_steps": 2 + seed, "num_images": 1 + seed % 2})


def _shapes_image(source: random.Random) -> Ask:
    options: dict[str, Any] = {"prompt": "a green star", "seed": source.randrange(2), "model": SHAPES}
    return Ask("shapes from image", options | {"image": _picture(64), "strength": 0.5, "num_inference_steps": 4})


def _image(source: random.Random) -> Ask:
    return Ask("image in", _simulated(source, image=_picture(source.choice((64, 200, 320)))))


def _mask(source: random.Random) -> Ask:
    return Ask("image and mask in", _simulated(source, image=_picture(128), mask_image=_mask_of(128)))


def _cancelled(source: random.Random) -> Ask:
    options = _simulated(source, num_inference_steps=20, model=source.choice((SIMULATED, SIMULATED, SHAPES)))
    options |= {"width": 64, "height": 64}
    after = source.choice((0.0, 0.01, 0.05, 0.1))
    return Ask("cancelled", options, frozenset({"cancelled"}), cancel_after=after)


def _deadline(source: random.Random) -> Ask:
    options = _simulated(source, width=64, height=64, timeout_seconds=source.choice((0.01, 0.05, 0.1, 0.3)))
    return Ask("deadline", options, frozenset({"deadline_exceeded"}))


def _followed(source: random.Random) -> Ask:
    model = source.choice((SIMULATED, SHAPES))
    options = _simulated(source, width=64, height=64, num_inference_steps=4, model=model)
    return Ask("followed", options, follow=True)


def _bad(source: random.Random) -> Ask:
    wrong: dict[str, Any] = source.choice(
        (
            {"num_inference_steps": 0},
            {"width": 8192},
            {"scheduler": "NoSuchScheduler"},
            {"extra": {"no_such": 1}},
            {"image": b"\x89PNG\r\n\x1a\nnot one"},
            {"image": b"no image"},
            {"prompt": "\ud800"},
            {"model": "no-such-model"},
        )
    )
    ends = frozenset({"model_not_found" if "model" in wrong else "invalid_request"})
    return Ask("bad", _simulated(source) | wrong, ends, must_fail=True)


MIX: dict[Callable[[random.Random], Ask], int] = {
    _plain: 30, _formats: 8, _shapes: 12, _shapes_image: 4, _image: 8, _mask: 4, _cancelled: 10, _deadline: 8,
    _followed: 8, _bad: 8,
}  # fmt: skip
"""Each kind's share of the traffic."""


def choose(source: random.Random) -> Ask:
    """Return the next request of the mix."""
    return source.choices(list(MIX), list(MIX.values()))[0](source)


def _simulated(source: random.Random, **options: Any) -> dict[str, Any]:
    seed = source.getrandbits(40)
    return {"prompt": f"soak {seed}", "seed": seed, "model": SIMULATED, "num_inference_steps": 8, **options}


@cache
def _picture(side: int) -> Image.Image:
    return Image.radial_gradient("L").resize((side, side)).convert("RGB")


@cache
def _mask_of(side: int) -> Image.Image:
    return Image.linear_gradient("L").resize((side, side))


@dataclass(slots=True)
class Judge:
    """Compares answers with what was asked."""

    _seen: dict[tuple[Any, ...], Image.Image] = field(default_factory=dict)
    """The first answer of each of the few requests to the real model."""

    def check(self, ask: Ask, result: GenerationResult) -> None:
        """Raise `WrongError` if this is not the answer to that request."""
        options = ask.options
        if ask.must_fail:
            raise WrongError(f"{ask.kind}: an answer to a request that is wrong")
        count = options.get("num_images", 1)
        seeds = [options["seed"] + number for number in range(count)]
        if result.seeds != seeds or result.model != options["model"]:
            raise WrongError(f"{ask.kind}: {result.model} {result.seeds} in place of {options['model']} {seeds}")
        if result.formats != [options.get("output_format", "png")] * count:
            raise WrongError(f"{ask.kind}: formats {result.formats}")
        self.look(ask, [io.BytesIO(frame) for frame in result.encoded], result.worker)

    def look(self, ask: Ask, files: list[io.BytesIO], worker: str | None) -> None:
        """Raise `WrongError` if these are not the pictures; without the worker's name only sizes are compared."""
        for number, file in enumerate(files):
            with Image.open(file) as image:
                image.load()
                self._look_at(ask, number, image, worker)

    def _look_at(self, ask: Ask, number: int, image: Image.Image, worker: str | None) -> None:
        options = ask.options
        source = options.get("image")
        size = (options["width"], options["height"]) if "width" in options else source and source.size
        if size and image.size != size:
            raise WrongError(f"{ask.kind}: {image.size} in place of {size}")
        if options["model"] == SHAPES:
            if ask.kind.startswith("shapes"):
                key = (ask.kind, options["seed"], number)
                first = self._seen.setdefault(key, image.copy())
                worst = max(high for _, high in ImageChops.difference(first, image).getextrema())  # type: ignore[misc]
                if worst > SHAPES_TOLERANCE:
                    raise WrongError(f"{ask.kind}: differs by {worst} of 255 from the first with its seed")
            return
        exact = worker is not None and image.format == "PNG" and source is None
        if exact and drawn(options, number, str(worker), image.size).tobytes() != image.tobytes():
            raise WrongError(f"{ask.kind}: another picture than seed {options['seed'] + number} gives")


def drawn(options: dict[str, Any], number: int, worker: str, size: tuple[int, int]) -> Image.Image:
    """Return what the simulated backend draws for image `number` of such a request."""
    seed = options["seed"] + number
    request = ResolvedRequest(
        model=SIMULATED,
        prompt=options["prompt"],
        negative_prompt=None,
        seeds=(seed,),
        num_inference_steps=1,
        guidance_scale=None,
        width=size[0],
        height=size[1],
    )
    return draw(Row(request, seed), worker)

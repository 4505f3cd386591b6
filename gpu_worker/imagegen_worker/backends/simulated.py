"""A backend without a model: small real images, a cost model in seconds, and injected faults.

A call with n images of m megapixels and s steps takes
`batch_seconds + n * image_seconds + s * (forward_seconds + megapixel_seconds * m * n)`.

A fault is given as `KIND:VALUE`:

- `slow:FACTOR`      everything takes FACTOR times as long
- `oom:N`            a call with more than N images runs out of memory
- `error-on:WORD`    a call with WORD in a prompt raises
- `crash-on:WORD`    a call with WORD in a prompt ends the process half way through
- `crash-after:N`    the call after N successful ones ends the process half way through
- `hang-on:WORD`     a call with WORD in a prompt blocks the device thread forever; heartbeats continue
- `hang-after:N`     the call after N successful ones blocks the device thread forever
"""

import hashlib
import os
import textwrap
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw, ImageFont

from imagegen_worker.backends import DeviceMemoryError, OnStep, Row, Sketch
from imagegen_worker.core.capabilities import TaskCapabilities
from imagegen_worker.core.events import EngineReady
from imagegen_worker.core.model import Model, ResolvedRequest

CRASH_STATUS = 70
"""Exit status of an injected crash."""
MODEL_BYTES = 2**30
"""Bytes of `--model-memory` that each model takes."""
MODEL = Model(
    name="simulated",
    num_inference_steps=20,
    guidance_scale=7.5,
    width=256,
    height=256,
    max_side=4096,
    max_reference_images=4,
    tasks={
        "text-to-image": TaskCapabilities(),
        "image-to-image": TaskCapabilities(strength=0.8),
        "inpainting": TaskCapabilities(strength=1.0),
    },
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """The injected faults; None: disabled."""

    slow: float = 1.0
    oom: int | None = None
    crash_after: int | None = None
    hang_after: int | None = None
    error_on: str | None = None
    crash_on: str | None = None
    hang_on: str | None = None


def parse_faults(specs: Sequence[str]) -> Faults:
    """Parse `KIND:VALUE` texts. Raises ValueError, which lists the valid kinds."""
    found: dict[str, float | int | str] = {}
    kinds: dict[str, type[float] | type[int] | type[str]] = {
        "slow": float,
        "oom": int,
        "crash-after": int,
        "hang-after": int,
        "error-on": str,
        "crash-on": str,
        "hang-on": str,
    }
    for spec in specs:
        kind, _, value = spec.partition(":")
        if kind not in kinds or not value:
            raise ValueError(f"expected one of {', '.join(f'{kind}:VALUE' for kind in kinds)}, got {spec!r}")
        try:
            parsed = kinds[kind](value)
        except ValueError as error:
            raise ValueError(f"{spec!r}: {value!r} is not a number") from error
        if isinstance(parsed, float | int) and not 0 <= parsed < float("inf"):
            raise ValueError(f"{spec!r}: the number must be at least 0")
        found[kind.replace("-", "_")] = parsed
    return Faults(**found)  # type: ignore[arg-type]  # each kind was parsed to its field's type


class SimulatedBackend:
    """Implements `Backend` with a cost model. `sleep` and `clock` use seconds."""

    def __init__(
        self,
        *,
        worker: str,
        batch_seconds: float,
        image_seconds: float,
        forward_seconds: float = 0.0,
        megapixel_seconds: float = 0.0,
        max_batch_size: int,
        model: str | None = None,
        load_seconds: float = 0.0,
        faults: Faults | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        crash: Callable[[int], None] = os._exit,
    ) -> None:
        self._worker = worker
        self._faults = faults or Faults()
        self._batch_seconds = batch_seconds * self._faults.slow
        self._image_seconds = image_seconds * self._faults.slow
        self._forward_seconds = forward_seconds * self._faults.slow
        self._megapixel_seconds = megapixel_seconds * self._faults.slow
        self._max_batch_size = max_batch_size
        self._model = model or MODEL.name
        self._load_seconds = load_seconds * self._faults.slow
        self._clock = clock
        self._sleep = sleep
        self._crash = crash
        self._completed_calls = 0

    @property
    def seconds_per_image(self) -> float:
        """Time of one image of the model's default size and steps in a full batch, by the cost model."""
        pixels = MODEL.width * MODEL.height / 1e6
        return self._seconds(self._max_batch_size, MODEL.num_inference_steps, pixels) / self._max_batch_size

    def size_bytes(self) -> int:
        """Return the assumed size of a simulated model."""
        return MODEL_BYTES

    def load(self) -> Model:
        """Wait for the time that loading costs."""
        self._wait_until(self._clock() + self._load_seconds)
        return replace(MODEL, name=self._model)

    def warm_up(self) -> EngineReady:
        """Wait for the time that loading costs; return what READY reports."""
        return EngineReady((self.load(),), "simulated", self.seconds_per_image)

    def call_key(self, request: ResolvedRequest) -> Hashable:
        """Return the batch key: a simulated call depends on nothing else."""
        return request.batch_key

    def warnings(self, request: ResolvedRequest) -> tuple[str, ...]:
        """Return no warnings."""
        return ()

    def generate(self, rows: list[Row], on_step: OnStep) -> list[Image.Image]:
        """Wait for the time of the cost model and draw the images; inject the faults."""
        request = rows[0].request
        due = self._clock() + self._seconds(len(rows), request.executed_steps, request.megapixels)
        faults = self._faults
        if faults.oom is not None and len(rows) > faults.oom:
            raise DeviceMemoryError(f"{len(rows)} images do not fit, {faults.oom} do")
        prompts = [row.request.prompt for row in rows]
        crashes = _matches(faults.crash_on, faults.crash_after, prompts, self._completed_calls)
        hangs = _matches(faults.hang_on, faults.hang_after, prompts, self._completed_calls)
        # The time of drawing is part of the total.
        images = [draw(row, self._worker) for row in rows]
        sketches = [_sketches(rows, images)] if any(row.preview for row in rows) else []
        started = self._clock()
        steps = request.num_inference_steps
        for step in range(1, steps + 1):
            self._wait_until(started + (due - started) * step / steps)
            if 2 * step > steps:
                if crashes:
                    self._crash(CRASH_STATUS)
                if hangs:
                    threading.Event().wait()
                if _matches(faults.error_on, None, prompts, self._completed_calls):
                    raise RuntimeError(f"a prompt contains {faults.error_on!r}")
            on_step(step, steps, *sketches)
        self._completed_calls += 1
        return images

    def close(self) -> None:
        """Do nothing."""

    def _seconds(self, images: int, steps: int, megapixels: float) -> float:
        """Return the seconds of a call for `images` images of `megapixels` each."""
        forward = self._forward_seconds + self._megapixel_seconds * megapixels * images
        return self._batch_seconds + images * self._image_seconds + steps * forward

    def _wait_until(self, due: float) -> None:
        if (seconds := due - self._clock()) > 0:
            self._sleep(seconds)


def _sketches(rows: list[Row], images: list[Image.Image]) -> list[Sketch | None]:
    return [image.copy if row.preview else None for row, image in zip(rows, images, strict=True)]


def _matches(word: str | None, after: int | None, prompts: list[str], completed_calls: int) -> bool:
    named = word is not None and any(word in prompt for prompt in prompts)
    return named or (after is not None and completed_calls >= after)


def draw(row: Row, worker: str) -> Image.Image:
    """Return an image that shows prompt, seed and worker; it depends on nothing else but size and task.

    The last line shows the worker's name, which changes no other part of the image.
    """
    request = row.request
    digest = hashlib.sha256(f"{request.prompt}\0{row.seed}".encode("utf-8", "surrogatepass")).digest()
    background = tuple(value // 3 for value in digest[:3])
    image = Image.new("RGB", (request.width, request.height), background)
    canvas = ImageDraw.Draw(image)
    for index in range(3):  # shapes that distinguish seeds
        at = digest[4 + 4 * index : 8 + 4 * index]
        centre = (at[0] * request.width // 256, at[1] * request.height // 256)
        radius = max(2, (32 + at[2] // 2) * min(request.width, request.height) // 512)
        canvas.circle(centre, radius, fill=tuple(digest[20 + 3 * index : 23 + 3 * index]))
    size = max(8, min(request.width, request.height) // 16)
    font = ImageFont.load_default(size)
    letters = max(4, 2 * request.width // size - 2)
    max_lines = max(1, (request.height - 3 * size) // (size + 4))
    task = [] if request.image is None and not request.images else [request.task]
    lines = [*textwrap.wrap(request.prompt[: letters * max_lines], letters)[:max_lines], *task, f"seed {row.seed}"]
    canvas.multiline_text((size // 2, size // 2), "\n".join(lines), fill="white", font=font)
    canvas.text((size // 2, request.height - size - size // 2), worker, fill="white", font=font)
    return image

"""Which requests may share one pipeline call: found by a trial that compares it with a call for each image."""

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from imagegen_worker.backends import DeviceMemoryError, Row
from imagegen_worker.backends.diffusers.device_memory import free_device_memory
from imagegen_worker.backends.diffusers.loaded import TRIAL_STEPS, LoadedPipeline
from imagegen_worker.backends.tracebacks import release_frames
from imagegen_worker.core.model import ResolvedRequest, Task

if TYPE_CHECKING:
    from PIL.Image import Image

    Generate = Callable[[Sequence[Row]], list[Image] | None]
    """Generates the images of rows by one pipeline call; returns None if the call fails.

    Raises `DeviceMemoryError` and `DeviceLostError`.
    """

_LIKE = 0.25
"""Largest distance of images of a batched call from those of calls alone, over the distance of two seeds."""
_ROUNDING = 4.0
"""Largest distance with prompts of different lengths, over the distance with equal prompts, which is rounding."""
_UNSEEN = 0.02
"""Mean distance of pixel values, of 255, that is rounding in any case: one pixel in 50 differs by one."""
SHORT_TEXT = "a"
LONG_TEXT = "a picture of a house by the sea, with two trees, in the rain, at night; " * 40
"""A text longer than the maximum of most models' text encoders: their tokenizers truncate it."""
_GUIDANCE = 4.0
"""Guidance scale with which negative prompts are tried: pipelines ignore them at 1 and below."""

_log = logging.getLogger(__name__)


class CallSharing:
    """The requests of one model that may share pipeline calls, for continuous and for static batching.

    `generate` runs one pipeline call. Nothing shares a call before `try_task` has tried its kind of task.
    """

    def __init__(self, loaded: LoadedPipeline, generate: "Generate") -> None:
        self._loaded = loaded
        self._generate = generate
        self._tried: dict[tuple[Task, str | None], bool | None] = {}
        """By task and scheduler: whether any prompts share a call (True), equal ones (False), or none (None)."""

    def was_tried(self, request: ResolvedRequest) -> bool:
        """Return whether the request's task was tried with the request's scheduler."""
        return (request.task, request.scheduler) in self._tried

    def call_key(self, request: ResolvedRequest) -> Hashable | None:
        """Return the key that requests have in common if they can share a pipeline call; None: they can't.

        If padding to the longest prompt of a call changes images, only requests with equal texts share a call.
        """
        any_prompts = self._tried.get((request.task, request.scheduler))
        if any_prompts is None:
            return None
        return request.batch_key, () if any_prompts else (request.prompt, request.negative_prompt)

    def try_task(
        self, task: Task, *, count: int = 2, steps: int = TRIAL_STEPS, scheduler: str | None = None
    ) -> "tuple[Sequence[Row], Sequence[Image]] | None":
        """Test whether one call for `count` rows generates the same images as a call for each row.

        `scheduler` is None for the model's own. Return the rows and the first two of their images, each generated
        alone; None if these rows can't share a call. Fewer rows are tried if memory is short.
        """
        name = scheduler or next(iter(self._loaded.model.schedulers), None)
        self._tried[task, name] = None
        while count >= 2:
            try:
                return self._try_rows(task, count, steps, name)
            except DeviceMemoryError as error:
                release_frames(error)
            free_device_memory()
            _log.warning("a trial call ran out of memory task=%s images=%d", task, count)
            count //= 2
        return None

    def _try_rows(
        self, task: Task, count: int, steps: int, name: str | None
    ) -> "tuple[Sequence[Row], Sequence[Image]] | None":
        """Do what `try_task` does with this number of rows. Raises `DeviceMemoryError`."""
        trial = partial(self._loaded.trial, task=task, scheduler=name)
        rows, *more = self._rows_of_unlike_lengths(trial, task, count, steps)
        alone, furthest = self._compare(rows)
        furthest = max([furthest, *(self._compare(others)[1] for others in more)])
        if alone is not None and furthest <= _UNSEEN:
            self._tried[task, name] = True
            return rows, alone
        rows = [trial(steps, seed, prompt=SHORT_TEXT) for seed in range(count)]
        alone = self._each_alone(rows)
        together = None if alone is None else self._generate(rows)
        if alone is None or not alike(together, alone):
            _log.warning(
                "one pipeline call for several images changes them, so each image gets its own call task=%s", task
            )
            return None
        any_prompts = self._tried[task, name] = furthest <= _ROUNDING * _furthest(together, alone)
        if not any_prompts:
            _log.warning(
                "prompts of other lengths change an image, so only equal prompts share a pipeline call "
                "task=%s distance=%.3f",
                task,
                furthest,
            )
        return rows, alone

    def _compare(self, rows: Sequence[Row]) -> "tuple[Sequence[Image] | None, float]":
        """Return the first two images, generated alone, and their largest distance from those of one call."""
        alone = self._each_alone(rows)
        return alone, math.inf if alone is None else _furthest(self._generate(rows), alone)

    def _each_alone(self, rows: Sequence[Row]) -> "Sequence[Image] | None":
        """Return the images of the first two rows, from a call for each; None if one fails."""
        images = [self._generate([row]) for row in rows[:2]]
        return None if None in images else [one[0] for one in images if one is not None]

    def _rows_of_unlike_lengths(
        self, trial: Callable[..., Row], task: Task, count: int, steps: int
    ) -> list[list[Row]]:
        """Return rows for one or two calls whose texts have very different lengths."""
        model = self._loaded.model
        texts = (SHORT_TEXT, LONG_TEXT)
        plain = [trial(steps, seed, prompt=texts[seed % 2]) for seed in range(count)]
        if not model.takes_negative_prompt:
            return [plain]
        guided: dict[str, Any] = {}
        if model.guidance_scale is not None:
            guided["guidance_scale"] = max(model.guidance_scale, _GUIDANCE)
        if "true_cfg_scale" in model.tasks[task].extra:
            guided["extra"] = {"true_cfg_scale": _GUIDANCE}
        negative = [
            trial(TRIAL_STEPS, seed, prompt=texts[seed], negative_prompt=texts[1 - seed], **guided)
            for seed in range(2)
        ]
        # Without negative prompts once: the pipelines of a model's tasks encode prompts in the same way.
        return [plain, negative] if task == next(iter(model.tasks)) else [negative]


def alike(together: "Sequence[Image] | None", alone: "Sequence[Image]") -> bool:
    """Return whether the images of one call equal, except for rounding, the two that were generated alone."""
    if together is None or len(together) < len(alone):
        return False
    apart = _distance(*alone)
    return all(_distance(*pair) <= _LIKE * apart for pair in zip(together, alone, strict=False))


def _furthest(together: "Sequence[Image] | None", alone: "Sequence[Image]") -> float:
    """Return the largest distance between images generated alone and in a batched call; inf if that failed."""
    if together is None or len(together) < len(alone):
        return math.inf
    return max(_distance(*pair) for pair in zip(together, alone, strict=False))


def _distance(one: "Image", other: "Image") -> float:
    """Return the mean distance of the pixels' values."""
    if one.size != other.size:
        return math.inf
    return float(np.abs(np.asarray(one, dtype=np.float32) - np.asarray(other, dtype=np.float32)).mean())

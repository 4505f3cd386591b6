"""Tasks (pipeline calls on greenlets), the calls of models that they wait for, and the models (stages)."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

UNEQUAL = "unequal"
"""Reason for calls of a kind that was compared: outputs of a shared forward and of forwards alone differed."""
MISMATCH = "mismatch"
"""Reason for the calls that took part in that comparison."""


class NotShareableError(Exception):
    """These calls can't share a forward; `reason` is one or two words, for logs and metrics."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Stage(Protocol):
    """One network of a pipeline, such as the text encoder or the denoiser, whose calls can share forwards."""

    @property
    def name(self) -> str:
        """Name in logs and metrics."""

    @property
    def is_denoiser(self) -> bool:
        """Whether its forwards are denoising steps, scheduled by cost. Forwards of other stages go first."""

    @property
    def is_decoder(self) -> bool:
        """Whether it decodes latents to images."""

    @property
    def exclusive(self) -> bool:
        """Whether it may keep state between calls; then only one task uses it until that task ends."""

    @property
    def fixed_rows(self) -> int | None:
        """Number of rows to which every forward is padded; None: no padding."""

    def describe(self, call: "Call") -> None:
        """Set `key`, `rows` and `reason` of a call."""

    def run(self, calls: "Sequence[Call]", max_rows: int) -> list[Any]:
        """Run calls with equal keys in forwards of at most `max_rows` rows; return one output for each.

        A call without a key is the only one, and runs with its own arguments. Raises `DeviceMemoryError`,
        `DeviceLostError`, `NotShareableError`, or whatever the model raises.
        """

    def run_in_tiles(self, call: "Call") -> Any:
        """Run one call of which not even one row fits into memory, in parts of a row; return its output.

        Raises as `run` does: `DeviceMemoryError` if the stage has no parts, or if these don't fit either.
        """

    def free_memory(self) -> None:
        """Release cached memory of the device."""


@dataclass(slots=True, eq=False)
class Call:
    """A call of a stage that waits for its forward. Calls with equal keys can share one.

    `key` is None for a call that can't share; `reason` then says why ("" if sharing is disabled). A call that
    waits while no other does is not described, because that takes time.
    """

    stage: Stage
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    task: "Task"
    rows: int = 1
    described: bool = False
    forwards_waited: int = 0
    """Forwards of other calls since this one was described."""
    key: Hashable | None = None
    reason: str = ""
    payload: Any = None
    """Data of the stage."""
    ready: Callable[[], bool] | None = None
    """Whether the call may run now, while calls of other tasks can run too; None: always."""


class Task(greenlet):  # type: ignore[misc]
    """A running pipeline call for `images` images. `tag` is for its owner; its forwards need `adapters`.

    `megapixels`: the size of each image. `steps`: its denoising steps.
    """

    def __init__(
        self,
        work: Callable[[], Any],
        *,
        number: int,
        tag: Any = None,
        adapters: Hashable = None,
        images: int = 1,
        megapixels: float = 1.0,
        steps: int = 1,
        started_at: float = 0.0,
    ) -> None:
        super().__init__()
        self._work: Callable[[], Any] | None = work
        self.number = number
        self.tag = tag
        self.adapters = adapters
        self.images = images
        self.megapixels = megapixels
        self.steps_left = steps
        self.started_at = started_at
        self.encoder_scale = 1.0
        """Factor of the scales of its adapters in text encoders; models of other kinds get it with each call."""
        self.unwanted: set[int] = set()
        """Indexes of its images that were cancelled: stages may leave out their rows."""
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext
        """Context in which it waits: undoes what it has set for the thread, which other tasks share."""
        self.result: Any = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        """Its share of the seconds of its forwards, by images."""
        self.largest_batch = images
        """The largest number of images in one of its forwards."""

    @property
    def wanted(self) -> int:
        """Number of the task's images that were not cancelled."""
        return self.images - len(self.unwanted)

    def run(self) -> None:
        """Run the work and store its result or error. Called by greenlet at the first switch."""
        work, self._work = self._work, None
        assert work is not None
        try:
            self.result = work()
        except BaseException as error:  # noqa: BLE001 - the owner handles it
            self.error = error


def current_task() -> Task | None:
    """Return the task whose greenlet is running; None outside of all tasks."""
    current = getcurrent()
    return current if isinstance(current, Task) else None


def wait_for_forward(call: Call) -> Any:
    """Switch to the scheduler until the forward of `call` has run; return its output. Runs in the call's task."""
    with call.task.waiting():
        return call.task.parent.switch(call)


class Condition:
    """Implements `Stage` without a model, for a task that waits for a condition."""

    name = "condition"
    is_denoiser = is_decoder = exclusive = False
    fixed_rows = None

    def describe(self, call: Call) -> None:
        """Do nothing: no calls share."""

    def run(self, calls: Sequence[Call], max_rows: int) -> list[Any]:
        """Return at once."""
        return [None for _ in calls]

    def run_in_tiles(self, call: Call) -> None:
        """Do nothing."""

    def free_memory(self) -> None:
        """Do nothing."""


def wait_until(ready: Callable[[], bool]) -> None:
    """Let other tasks run until `ready` returns True, or until no other task can run."""
    task = current_task()
    if task is not None and not ready():
        wait_for_forward(Call(Condition(), (), {}, task, described=True, ready=ready))

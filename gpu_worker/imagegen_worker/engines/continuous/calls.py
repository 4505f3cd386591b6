"""What passes between requests on greenlets and the hub: tasks, their calls, and the stages that are called."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]


class NotJoinableError(Exception):
    """These calls can't share a forward; `reason` is a word or two, for logs and metrics."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Stage(Protocol):
    """A model whose calls are gathered."""

    @property
    def name(self) -> str:
        """How logs and metrics call it."""

    @property
    def is_denoiser(self) -> bool:
        """Its forwards are the steps: they take turns by cost. Those of the others go first."""

    @property
    def exclusive(self) -> bool:
        """It may keep state from call to call: one task has it to itself until that task ends."""

    @property
    def fixed_rows(self) -> int | None:
        """Every forward is padded to this many rows; None: to none."""

    def describe(self, call: "Call") -> None:
        """Fill in what is to be known of a call before it can share: `key`, `rows` and `reason`."""

    def run(self, calls: "Sequence[Call]", max_rows: int) -> list[Any]:
        """Run calls with equal keys in forwards of at most `max_rows` rows; return one output for each.

        A call without a key comes alone, and is run as it is. Raises `DeviceMemoryError`, `DeviceLostError`,
        `NotJoinableError`, or whatever the model raises.
        """

    def free_memory(self) -> None:
        """Give back to the device what is cached there."""


@dataclass(slots=True, eq=False)
class Call:
    """A call of a stage that waits for its forward. Calls with equal keys can share one.

    `key` is None for a call that can share with none, and `reason` then says why ("" if that is meant to be so).
    A call that has no company goes without a description, for that takes time.
    """

    stage: Stage
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    task: "Task"
    rows: int = 1
    described: bool = False
    key: Hashable | None = None
    reason: str = ""
    payload: Any = None
    """What the stage wants to remember."""


class Task(greenlet):  # type: ignore[misc]
    """One pipeline call on its way, for `images` images. `tag` is its owner's; its calls need `adapters`."""

    def __init__(
        self,
        work: Callable[[], Any],
        *,
        number: int,
        tag: Any = None,
        adapters: Hashable = None,
        images: int = 1,
    ) -> None:
        super().__init__()
        self._work: Callable[[], Any] | None = work
        self.number = number
        self.tag = tag
        self.adapters = adapters
        self.images = images
        self.unwanted: set[int] = set()
        """Of its images, by number, those that nobody waits for any more: stages may leave out their rows."""
        self.result: Any = None
        self.error: BaseException | None = None
        self.seconds = 0.0
        """Its share of the time of the forwards that it took part in."""
        self.company = images
        """The most images that shared one forward, its own included."""

    @property
    def wanted(self) -> int:
        """How many of its images somebody waits for."""
        return self.images - len(self.unwanted)

    def run(self) -> None:
        """Do the work, and keep what comes out. Called by greenlet at the first switch."""
        work, self._work = self._work, None
        assert work is not None
        try:
            self.result = work()
        except BaseException as error:  # noqa: BLE001 - the owner decides what it means
            self.error = error


def current_task() -> Task | None:
    """Return the task that runs, or None outside of any."""
    current = getcurrent()
    return current if isinstance(current, Task) else None


def rendezvous(call: Call) -> Any:
    """Wait for the forward of `call` and return its output. Called from within its task."""
    return call.task.parent.switch(call)
